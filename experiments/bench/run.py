"""Throughput, M2's beside Pyro, and what training costs as sizes grow: `python -m experiments bench`.

What is timed is an epoch of twenty batches. Writes results/bench.json, a smoke run of tiny batches below preview/smoke.
On a shared machine compare the numbers of one throughput row, which take turns, and not those of two.
"""

import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

import torch

from experiments import SMOKE, runner
from vae.conv import ConvNet, DeconvNet
from vae.data import Batches, binarize
from vae.marginalization import marginalize, marginalize_topk
from vae.networks import MLP
from vae.recipes import build_m1, build_m2
from vae.training import Recipe, fit

THROUGHPUT = [{"what": "m1", "batch": 500}, {"what": "m2_exact", "batch": 500}, {"what": "m2_topk", "batch": 1000}]
COST = [
    *({"what": what, "batch": 100, "num_classes": n} for what in ("m2_exact", "m2_topk") for n in (10, 100, 1000)),
    *({"what": "m2_topk", "batch": 100, "x_shape": shape} for shape in ((1, 28, 28), (3, 32, 32), (3, 64, 64))),
    *({"what": "m1", "batch": batch} for batch in (20, 100, 500, 2000)),
]
MARGINALIZATIONS = {"m2_exact": marginalize, "m2_topk": partial(marginalize_topk, k=1)}
Z_DIM, NUM_CLASSES = 50, 10


def random_images(batch, x_shape=(784,)):
    """Return twenty batches (N, *X) of black and white pixels, as many of them white as in MNIST."""
    return torch.rand(20 * batch, *x_shape, generator=torch.Generator().manual_seed(0)).lt(0.13).float()


def build_model(what, x_shape=(784,), num_classes=NUM_CLASSES):
    """Return the untrained model: M1 784-500-500-50, or M2 with one hidden layer of 500 in each network.

    For images (C, H, W), M2 has convolutions before them, or behind.
    """
    encode, decode = (MLP, MLP) if len(x_shape) == 1 else (ConvNet, DeconvNet)
    if what == "m1":
        return build_m1(x_shape, Z_DIM, (500, 500))
    return build_m2(x_shape, num_classes, Z_DIM, (500,), network=encode, decoder_network=decode)


def build_epoch(images, batch, what, bf16=False, **sizes):
    """Return a function that trains on all `images` once, binarized anew: M1, M2 without labels, or "pyro"'s."""
    torch.manual_seed(0)
    batches = Batches(images, batch, torch.Generator().manual_seed(0), binarize)
    if what == "pyro":
        from experiments.bench.peer_pyro import build_update

        update = build_update()
        return lambda: [update(x) for x in batches]
    model = build_model(what, **sizes)

    def loss_fn(x):
        bound = model.elbo(x) if what == "m1" else model.unlabeled_elbo(x, MARGINALIZATIONS[what])
        return -bound.mean()

    return lambda: fit(loss_fn, model, batches, Recipe(bf16=bf16), epochs=1, verbose=False)


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


def cost(what, batch, x_shape=(784,), **sizes):
    """Return CPU seconds for 1,000 images, in float32 and one thread, after an epoch that warms up."""
    torch.set_num_threads(1)
    images = random_images(batch, x_shape)
    train = build_epoch(images, batch, what, x_shape=x_shape, **sizes)
    train()
    start = time.process_time()
    train()
    return {"cpu_seconds_per_1000_images": 1000 * (time.process_time() - start) / len(images)}


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
