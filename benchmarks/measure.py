"""Measure cases in turns, together with the rates that set their limit."""

from statistics import median

import torch

from benchmarks.limits import large_copy, limit_seconds, square_product, step_cost
from benchmarks.memory import peak_mib
from benchmarks.steps import builder, random_images
from benchmarks.timing import interleave


def bf16_slowdown(size=256, seconds=0.01):
    """Return how many times slower a product in bf16 is than in fp32: below 1 where the processor has bf16."""
    times = interleave({dtype: square_product(size, dtype) for dtype in ("fp32", "bf16")}, 3, seconds)
    return median(times["bf16"]) / median(times["fp32"])


def _rates(times, plan_size, copy_mib):
    """Return operations per second of each precision's product, and bytes per second of the copy, in each round."""
    work = {"fp32": 2 * plan_size**3, "bf16": 2 * plan_size**3, "copy": 2 * copy_mib * 2**20}
    return {name: [work[name] / t for t in times[name]] for name in work.keys() & times.keys()}


def fraction_of_limit(case, seconds, rates):
    """Return the median over rounds of the limit's time over the step's."""
    flops, num_bytes = step_cost(case)
    rounds = zip(seconds, rates[case.dtype], rates["copy"], strict=True)
    return median(limit_seconds(flops, num_bytes, rate, bandwidth) / s for s, rate, bandwidth in rounds)


def measure(threads, cases, plan):
    """Return a record of each case, their seconds per step in each round, and the rates in each round."""
    torch.set_num_threads(threads)
    device = cases[0].device
    size, copy_mib = (8192, 1024) if device == "cuda" else (plan.product_size, plan.copy_mib)
    images = random_images(device)
    calls = {case: builder(case.what)(case, images) for case in cases}
    calls |= {dtype: square_product(size, dtype, device) for dtype in sorted({case.dtype for case in cases})}
    calls |= {"copy": large_copy(copy_mib, device)}
    times = interleave(calls, plan.rounds, plan.seconds)
    rates = _rates(times, size, copy_mib)
    times = {case: times[case] for case in cases}
    records = [
        vars(case)
        | {
            "threads": threads,
            "images_per_second": case.batch / median(times[case]),
            "peak_mib": peak_mib(case),
            "fraction_of_limit": fraction_of_limit(case, times[case], rates),
        }
        for case in cases
    ]
    return records, times, rates
