"""Seconds and memory of steps, on a machine that others use too: they take turns, and are compared turn by turn."""

import multiprocessing
import resource
import time
from statistics import median

import torch

from experiments.bench.steps import build_step, builder, random_images


def _seconds_per_call(call, count, clock):
    """Return the mean over `count` calls in a row, a GPU's work included."""
    start = clock()
    for _ in range(count):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / count


def interleave(calls, rounds, seconds, clock=time.perf_counter):
    """Return, for each of the named `calls`, its seconds per call in each round, by `clock`.

    A round goes through all of them, each called as often as about fills `seconds`, at least once. Before the first
    round, each is called twice: to warm up, and to see how long it takes.
    """
    for call in calls.values():
        call()
    counts = {name: max(1, round(seconds / _seconds_per_call(call, 1, clock))) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds_per_call(call, counts[name], clock))
    return times


def median_ratio(numerators, denominators):
    """Return the median over rounds of one's time over the other's in the same round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def _peak(case):
    torch.set_num_threads(case.threads)
    images = random_images(case.device, x_shape=case.x_shape)
    builder(case.what)  # imports a peer
    torch.mm(images[:64].flatten(1), images[:64].flatten(1).T)  # starts the threads
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    step = build_step(case, images)
    for _ in range(2):  # the second has Adam's state from the start
        step()
    if case.device == "cuda":
        return (torch.cuda.max_memory_allocated() - images.nbytes) / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def peak_mib(case):
    """Return how many MiB model, optimizer and two steps take at most beyond the images, in a process of their own.

    On a CPU, that is resident memory: it includes what PyTorch's libraries set up on first use, some MiB. Images must
    be made in place: memory that they had freed would be taken first, and not be counted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # Adam's first step would import the second
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case,))
