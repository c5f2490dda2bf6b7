"""The least time that a step could take on this machine: its arithmetic and its memory traffic at the best rates.

Arithmetic is the step's matrix products alone, at the rate of one large square product; traffic is only what cannot be
avoided, at the rate of one large copy: Adam's state and the pixels' likelihood. A step that is at its limit would do
the rest (activations, noise, binarisation, Python) in no time.
"""

from dataclasses import replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import MARGINALIZATIONS, build_model, builder, random_images

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A peer is held to the limit of what it stands beside; the other ways to sum over labels to that of the first.
SAME_TASK = {"pythae_m1": "m1", "pyro_m2": "m2_exact", "m2_loop": "m2_exact", "m2_chunked": "m2_exact"}


def count_flops(step):
    """Return the floating-point operations of the matrix products in one call of `step`, backward included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def optimizer_bytes(num_parameters):
    """Adam reads parameter, gradient and two moments, and writes all but the gradient: seven float32 numbers."""
    return 7 * 4 * num_parameters


def likelihood_bytes(images, rows, element_size, training):
    """Logits (rows, 784) and pixels (images, 784) are read; in training both again, and the logits' gradient written.

    `rows` counts each label and each sample of an image.
    """
    passes = 3 * rows + 2 * images if training else rows + images
    return 784 * element_size * passes


def limit_seconds(flops, num_bytes, flops_per_second, bytes_per_second):
    """Return the least time for both, one after the other."""
    return flops / flops_per_second + num_bytes / bytes_per_second


def decoded_rows(case):
    """Return how many rows of logits a step needs: one for each image, label summed over and sample."""
    per_image = {"m2_exact": case.num_classes, "m2_topk": 2, "iwae": case.num_samples}
    return case.batch * per_image.get(case.what, 1)


@cache
def _flops(case):
    return count_flops(builder(case.what)(case, random_images()))


def step_cost(case):
    """Return the floating-point operations and the bytes that a step of this task needs."""
    case = replace(case, what=SAME_TASK.get(case.what, case.what))
    training = case.what == "m1" or case.what in MARGINALIZATIONS
    element_size = DTYPES[case.dtype].itemsize
    num_bytes = likelihood_bytes(case.batch, decoded_rows(case), element_size, training)
    if training:
        num_bytes += optimizer_bytes(sum(p.numel() for p in build_model(case).parameters()))
    return _flops(replace(case, dtype="fp32", device="cpu", mode="eager")), num_bytes


def square_product(size, dtype, device="cpu"):
    """Return a function that multiplies two matrices (size, size): 2 size³ operations."""
    a, b = (torch.ones(size, size, dtype=DTYPES[dtype], device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def large_copy(mebibytes, device="cpu"):
    """Return a function that copies so much memory, which reads and writes it: 2 · 2²⁰ · mebibytes bytes."""
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
