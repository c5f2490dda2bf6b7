"""Throughput, M2's beside Pyro, and what training costs: `python -m experiments bench`.

Writes results/bench.json, a smoke run of tiny batches below preview/smoke. On a shared machine compare the numbers of
one throughput row, which take turns, and not those of two.
"""

import time
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

import torch

from experiments import SMOKE, runner
from experiments.bench.epoch import build_epoch, cost, random_images

THROUGHPUT = [
    {"what": "m1", "batch": 500},
    {"what": "m2_exact", "batch": 500},
    {"what": "m2_topk", "batch": 1000},
]
COST = [
    *({"what": what, "batch": 100, "num_classes": n} for what in ("m2_exact", "m2_topk") for n in (10, 100, 1000)),
    *({"what": "m2_topk", "batch": 100, "x_shape": shape} for shape in ((1, 28, 28), (3, 32, 32), (3, 64, 64))),
    *({"what": "m1", "batch": batch} for batch in (20, 100, 500, 2000)),
]


def take_turns(calls, rounds):
    """Return the seconds of each of the named `calls` in each round, after a first one, which warms up."""
    seconds = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def median_ratio(numerators, denominators):
    """Return the median over rounds of one's time over the other's in the same round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def throughput(what, batch):
    """Return images per second and ours over Pyro's, in float32; ours also in bfloat16 where there is such."""
    torch.set_num_threads(2)
    images = random_images(batch)
    dtypes = ["fp32", "bf16"] if runner.has_bf16() else ["fp32"]
    calls = {dtype: build_epoch(images, batch, what, bf16=dtype == "bf16") for dtype in dtypes}
    if what != "m1" and find_spec("pyro"):
        calls["pyro"] = build_epoch(images, batch, "pyro")
    elif what != "m1":
        print("LEFT OUT: Pyro is not installed; pip install '.[bench]'")
    times = take_turns(calls, rounds=1 if SMOKE else 5)
    rates = {name: len(images) / median(seconds) for name, seconds in times.items()}
    ratios = {dtype: median_ratio(times["pyro"], times[dtype]) for dtype in dtypes if "pyro" in times}
    return {"images_per_second": rates, "over_pyro": ratios}


def measured(measure, rows):
    """Return the `rows`, each with what `measure` says of it, and what the numbers depend on."""
    records = []
    for row in rows:
        smaller = {"batch": 4} if SMOKE else {}
        records.append(row | smaller | measure(**row | smaller))
        print(records[-1], flush=True)
    pyro = {"pyro-ppl": version("pyro-ppl")} if find_spec("pyro") else {}
    return {"rows": records, "machine": runner.machine(), "versions": runner.versions() | pyro}


def bench():
    """Measure, print each row as it comes, and write the file."""
    result = {"throughput": measured(throughput, THROUGHPUT), "cost": measured(cost, COST)}
    runner.write_result(result, runner.RESULTS / "bench.json")
