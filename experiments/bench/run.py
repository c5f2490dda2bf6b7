"""Throughput, memory and distance from the machine's limit, beside pythae and Pyro: `python -m experiments bench`.

Writes results/bench.json and _images/throughput.png; with --scaling, how cost grows to results/bench-scaling.json. A
smoke run, in which all is tiny, writes to preview/smoke. Numbers of one run belong together: its cases took turns.
Those of two runs on a shared machine may not compare.
"""

import os
import platform
import re
import time
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

    def group(self, cases, rounds, clock=time.perf_counter):
        """Measure cases of one device and number of threads, in turns with what sets their limit; return records."""
        device, threads = cases[0].device, cases[0].threads
        torch.set_num_threads(threads)
        calls, work = limiting_calls({case.dtype: None for case in cases}, device)
        calls |= {case: build_step(case, random_images(device, x_shape=case.x_shape)) for case in cases}
        times = interleave(calls, rounds, self.plan.seconds, clock)
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

    def grid(self):
        """Measure throughput, memory and limits of every batch size."""
        what, dtypes = [name for name in WHAT if name not in MISSING], list(DTYPES)
        self.left_out += [f"{w}: not installed; pip install -e '.[bench]'" for w in WHAT if w in MISSING]
        times = interleave(limiting_calls(DTYPES, "cpu")[0], rounds=3, seconds=0.01)
        slowdown = median_ratio(times["bf16"], times["fp32"])  # below 1 where the processor has bf16
        if slowdown > SLOW_BF16:
            dtypes.remove("bf16")
            self.left_out.append(f"bf16 but for one ratio: products in it take {slowdown:.0f} times as long as in fp32")
        print(*(f"LEFT OUT: {text}" for text in self.left_out), HEADER, sep="\n", flush=True)
        gpu_groups = self.plan.gpu_grid(what) if torch.cuda.is_available() else []
        for cases in filter(None, self.plan.grid(what, dtypes) + gpu_groups):
            self.measurements += self.group(cases, self.plan.rounds)
        for case in (Case("m1", self.plan.batch), Case("m2_exact", self.plan.batch)):
            near = [r["fraction_of_limit"] for r in self.measurements if vars(case).items() <= r.items()]
            self.ratios |= {f"{case.what}_fp32_of_limit": fraction for fraction in near}

    def scale(self):
        """Measure how time and memory grow with labels, pixels, images, latents and samples, in one thread.

        Time is the processor's, which other programs on the machine change least.
        """
        for name, steps, batch, values in self.plan.scaling:
            cases = [Case(what, **{"batch": batch, "threads": 1, name: n}) for what in steps for n in values]
            for record in self.group(cases, self.plan.scaling_rounds, time.process_time):
                kept = {key: record[key] for key in ("what", "batch", name, "peak_mib", "fraction_of_limit")}
                seconds = {"cpu_seconds_per_1000_images": 1000 / record["images_per_second"]}
                self.scaling[name].append(kept | seconds)

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
            "left_out": self.left_out,
            "machine": machine(),
            "versions": runner.versions() | peers,
        }


def scaling():
    """Measure how cost grows, print a table, and write the file."""
    run = Bench(SMOKE if runner.SMOKE else Plan())
    print(HEADER)
    run.scale()
    result = {"scaling": run.scaling, "machine": machine(), "versions": runner.versions()}
    runner.write_result(result, runner.RESULTS / "bench-scaling.json")


def bench():
    """Measure, print a table, and write file and figure."""
    run = Bench(SMOKE if runner.SMOKE else Plan())
    run.grid()
    runner.write_result(run.result(), runner.RESULTS / "bench.json")
    figure = throughput(run.measurements, run.plan.batch)
    runner.write_figure(figure, runner.ROOT / "_images" / "throughput.png")
    print(*(f"{name}: {value:.3g}" for name, value in run.ratios.items()), sep="\n")
