"""The least time that a step could take on this machine: its arithmetic and its memory traffic at the best rates.

Arithmetic is the step's matrix products alone, at the rate of one large square product; traffic is only what cannot be
avoided, at the rate of one large copy: Adam's state and the pixels' likelihood. A step that is at its limit would do
the rest (activations, noise, binarization, Python) in no time.
"""

import math
from dataclasses import replace
from functools import cache, partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import runner
from experiments.bench.steps import DTYPES, EVALUATIONS, THREADS, build_model, build_step, random_images

# A peer is held to the limit of what it stands beside; the other ways to sum over labels to that of the first.
SAME_TASK = {"pythae_m1": "m1", "pyro_m2": "m2_exact", "m2_loop": "m2_exact", "m2_chunked": "m2_exact"}


@cache
def count_flops(case):
    """Return the floating-point operations of the matrix products in one step, backward included."""
    step = build_step(case, random_images(x_shape=case.x_shape))
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def count_bytes(case):
    """Return the bytes that a step of ours has to read or write.

    The likelihood reads logits (rows, X) and pixels (B, X); training reads both again and writes the logits'
    gradient. Adam reads parameter, gradient and two moments, and writes all but the gradient: seven float32 numbers.
    """
    rows = case.batch * {"m2_exact": case.num_classes, "m2_topk": 2, "iwae": case.num_samples}.get(case.what, 1)
    row_bytes = math.prod(case.x_shape) * DTYPES[case.dtype].itemsize
    if case.what in EVALUATIONS:
        return row_bytes * (rows + case.batch)
    num_parameters = sum(p.numel() for p in build_model(case).parameters())
    return row_bytes * (3 * rows + 2 * case.batch) + 7 * 4 * num_parameters


def step_cost(case):
    """Return the floating-point operations and the bytes that the task of this step needs, whatever runs it."""
    task = replace(case, what=SAME_TASK.get(case.what, case.what), device="cpu", mode="eager", threads=THREADS)
    return count_flops(replace(task, dtype="fp32")), count_bytes(task)


def limit_seconds(case, rates):
    """Return the least time for arithmetic, then traffic, in each round, from the `rates` of that round."""
    flops, num_bytes = step_cost(case)
    rounds = zip(rates[case.dtype], rates["copy"], strict=True)
    return [flops / flops_per_second + num_bytes / bytes_per_second for flops_per_second, bytes_per_second in rounds]


def limiting_calls(dtypes, device):
    """Return the calls whose rates set the limit, by name, and the operations or bytes of each: products and "copy"."""
    size, mebibytes = (64, 1) if runner.SMOKE else (8192, 1024) if device == "cuda" else (1024, 256)
    source = torch.ones(mebibytes << 18, device=device)
    calls = {"copy": partial(torch.empty_like(source).copy_, source)}
    work = {"copy": 2 * source.nbytes}  # read and written
    for dtype in dtypes:
        a, b, out = (torch.ones(size, size, dtype=DTYPES[dtype], device=device) for _ in range(3))
        calls[dtype] = partial(torch.mm, a, b, out=out)
        work[dtype] = 2 * size**3
    return calls, work
