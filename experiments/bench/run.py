"""Throughput, memory and distance from the machine's limit, beside pythae and Pyro: `python -m experiments bench`.

Writes results/bench.json and _images/throughput.png; a smoke run, in which all is tiny, writes to preview/smoke.
Numbers of one run belong together: its cases took turns. Those of two runs on a shared machine may not compare.
"""

import os
import platform
import re
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from experiments import runner
from experiments.bench.limits import limit_seconds, limiting_calls
from experiments.bench.measure import interleave, median_ratio, peak_mib
from experiments.bench.plan import SMOKE, Plan
from experiments.bench.report import HEADER, line, throughput
from experiments.bench.steps import DTYPES, MISSING, WHAT, Case, build_step, random_images
from vae.checkpoint import atomic_path

SLOW_BF16 = 4  # times slower than fp32: beyond that, the processor only imitates bf16


def machine():
    """Return what the numbers depend on: processor, its cores, graphics processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpu": gpu}


class Bench:
    """Collects what the groups of a plan leave, and prints each record as it comes."""

    def __init__(self, plan):
        self.plan, self.measurements, self.scaling, self.ratios, self.left_out = plan, [], defaultdict(list), {}, []
        self.rates = defaultdict(list)  # (device, threads, "fp32", "bf16" or "copy") -> one value per round

    def group(self, cases):
        """Measure cases of one device and number of threads, in turns with what sets their limit; return records."""
        device, threads = cases[0].device, cases[0].threads
        torch.set_num_threads(threads)
        calls, work = limiting_calls({case.dtype: None for case in cases}, device)
        images = random_images(device)
        calls |= {case: build_step(case, images) for case in cases}
        times = interleave(calls, self.plan.rounds, self.plan.seconds)
        rates = {name: [work[name] / seconds for seconds in times[name]] for name in work}
        for name, values in rates.items():
            self.rates[device, threads, name] += values
        for name, (ours, peer) in self.plan.pairs().items():
            if {ours, peer} <= times.keys():
                self.ratios[name] = median_ratio(times[peer], times[ours])
        records = [
            vars(case)
            | {
                "images_per_second": case.batch / median(times[case]),
                "peak_mib": peak_mib(case),
                "fraction_of_limit": median_ratio(limit_seconds(case, rates), times[case]),
            }
            for case in cases
        ]
        print(*map(line, records), sep="\n", flush=True)
        return records

    def grid(self, names):
        """Measure everything but how cost grows."""
        what, dtypes = [name for name in names if name not in MISSING], list(DTYPES)
        self.left_out += [f"{w}: not installed; pip install '.[bench]'" for w in names if w in MISSING]
        times = interleave(limiting_calls(DTYPES, "cpu")[0], rounds=3, seconds=0.01)
        slowdown = median_ratio(times["bf16"], times["fp32"])  # below 1 where the processor has bf16
        if slowdown > SLOW_BF16:
            dtypes.remove("bf16")
            self.left_out.append(f"bf16 but for one ratio: products in it take {slowdown:.0f} times as long as in fp32")
        print(*(f"LEFT OUT: {text}" for text in self.left_out), HEADER, sep="\n", flush=True)
        gpu_groups = self.plan.gpu_grid(what) if torch.cuda.is_available() else []
        for cases in filter(None, self.plan.grid(what, dtypes) + gpu_groups):
            self.measurements += self.group(cases)
        for case in (Case("m1", self.plan.batch), Case("m2_exact", self.plan.batch)):
            near = [r["fraction_of_limit"] for r in self.measurements if vars(case).items() <= r.items()]
            self.ratios |= {f"{case.what}_fp32_of_limit": fraction for fraction in near}

    def scale(self):
        """Measure how speed and memory change with the number of labels, latents, samples and images."""
        for name, what, batch, values in self.plan.scaling:
            records = self.group([Case(what, **{"batch": batch, name: n}) for n in values])
            keys = ("what", "batch", name, "images_per_second", "peak_mib", "fraction_of_limit")
            self.scaling[name] += [{key: record[key] for key in keys} for record in records]

    def median_rates(self, names, unit):
        """Return records of the measured rates called `names`, in billions per second."""
        return [
            {"device": device, "threads": threads, "dtype": name, unit: median(values) / 1e9}
            for (device, threads, name), values in self.rates.items()
            if name in names
        ]

    def result(self):
        """Return everything, for the file."""
        packages = {"pythae_m1": "pythae", "pyro_m2": "pyro-ppl"}
        peers = {name: version(name) for what, name in packages.items() if what not in MISSING}
        return {
            "ratios": self.ratios,
            "measurements": self.measurements,
            "gemm": self.median_rates(DTYPES, "gflop_per_second"),
            "bandwidth": self.median_rates(["copy"], "gb_per_second"),
            "scaling": self.scaling,
            "left_out": self.left_out,
            "machine": machine(),
            "versions": runner.versions() | peers,
        }


def bench(only):
    """Measure and print a table; unless it is of the steps `only`, measure scaling too, and write file and figure.

    Raises UserError for a name that there is not.
    """
    unknown = sorted(set(only or ()) - set(WHAT))
    if unknown:
        raise runner.UserError(f"nothing is called {', '.join(unknown)}; there are {', '.join(WHAT)}")
    run = Bench(SMOKE if runner.SMOKE else Plan())
    run.grid(only or WHAT)
    if not only:
        run.scale()
        runner.write_result(run.result(), runner.RESULTS / "bench.json")
        with atomic_path(runner.ROOT / "_images" / "throughput.png") as partial:
            figure = throughput(run.measurements, run.plan.batch)
            figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
    print(*(f"{name}: {value:.3g}" for name, value in run.ratios.items()), sep="\n")
