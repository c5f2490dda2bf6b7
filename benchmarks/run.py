"""Run the groups of a plan, and collect what they leave in one result."""

import os
import platform
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import bf16_slowdown, measure
from benchmarks.plan import THREADS
from benchmarks.report import HEADER, line
from benchmarks.steps import installed
from benchmarks.timing import median_ratio
from vae import jobs

SLOW_BF16 = 4  # times slower than fp32: beyond that, the processor only imitates bf16


def machine():
    """Return what the numbers depend on: processor, its cores, graphics processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpu": gpu}


def versions():
    """Return the versions of Python, of the packages that all results depend on, and of the installed peers."""
    packages = {"pythae_m1": "pythae", "pyro_m2": "pyro-ppl"}
    return jobs.versions() | {name: version(name) for what, name in packages.items() if installed(what)}


class Bench:
    """Collects what the groups of a plan leave, and prints each record as it comes."""

    def __init__(self, plan):
        self.plan, self.left_out, self.measurements, self.times = plan, [], [], {}
        self.rates = defaultdict(list)  # (device, threads, "fp32", "bf16" or "copy") -> one value per round

    def leave_out(self, what):
        """Say, here and in the file, what is not measured and why."""
        self.left_out.append(what)
        print(f"LEFT OUT: {what}", flush=True)

    def group(self, threads, cases, **more):
        """Measure one group and return its records, `more` added to each."""
        records, times, rates = measure(threads, cases, self.plan)
        for name, values in rates.items():
            self.rates[cases[0].device, threads, name] += values
        records = [record | more for record in records]
        print(*map(line, records), sep="\n", flush=True)
        return records, times

    def grid(self, only):
        """Measure everything but how cost grows."""
        dtypes = ["fp32", "bf16"]
        slowdown = bf16_slowdown()
        if slowdown > SLOW_BF16:
            dtypes.remove("bf16")
            self.leave_out(f"bf16 but for one ratio: its products are {slowdown:.0f} times slower than fp32's here")
        print(HEADER, flush=True)
        for threads, cases in self.plan.grid(only, dtypes):
            records, times = self.group(threads, cases)
            self.measurements += records
            if threads == THREADS:
                self.times |= times
        if torch.cuda.is_available():
            for threads, cases in self.plan.gpu_grid(only):
                self.measurements += self.group(threads, cases)[0]

    def scaling(self):
        """Return how speed and memory change with the number of labels, latents, samples and images."""
        result = defaultdict(list)
        for name, cases in self.plan.scaled_cases():
            records, _ = self.group(THREADS, cases, grows=(name,))
            keys = ("what", "batch", name, "images_per_second", "peak_mib", "fraction_of_limit")
            result[name] += [{key: record[key] for key in keys} for record in records]
        return result

    def ratios(self):
        """Return how near our steps are to the limit, and how many times faster than the peers'."""
        result = {}
        for r in self.measurements:
            size = (r["device"], r["batch"], r["dtype"], r["threads"])
            if r["what"] in ("m1", "m2_exact") and size == ("cpu", self.plan.batch, "fp32", THREADS):
                result[f"{r['what']}_fp32_of_limit"] = r["fraction_of_limit"]
        for name, (ours, peer) in self.plan.ratios().items():
            if {ours, peer} <= self.times.keys():
                result[name] = median_ratio(self.times[peer], self.times[ours])
        return result

    def result(self, scaling):
        """Return everything, for the file."""
        rates = [
            ({"device": device, "threads": threads, "dtype": name}, median(values) / 1e9)
            for (device, threads, name), values in self.rates.items()
        ]
        return {
            "ratios": self.ratios(),
            "measurements": self.measurements,
            "gemm": [key | {"gflop_per_second": rate} for key, rate in rates if key["dtype"] != "copy"],
            "bandwidth": [key | {"gb_per_second": rate} for key, rate in rates if key["dtype"] == "copy"],
            "scaling": scaling,
            "left_out": self.left_out,
            "machine": machine(),
            "versions": versions(),
        }
