"""Time several calls against each other on a machine that others use too: in turns, and compared turn by turn."""

import time
from statistics import median

import torch


def _seconds_per_call(call, count):
    """Return the mean over `count` calls in a row, a GPU's work included."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def interleave(calls, rounds, seconds):
    """Return, for each of the named `calls`, its seconds per call in each round.

    A round goes through all of them, each called as often as about fills `seconds`, at least once. Before the first
    round, each is called twice: to warm up, and to see how long it takes.
    """
    for call in calls.values():
        call()
    counts = {name: max(1, round(seconds / _seconds_per_call(call, 1))) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds_per_call(call, counts[name]))
    return times


def median_ratio(numerators, denominators):
    """Return the median over rounds of one's time over the other's in the same round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))
