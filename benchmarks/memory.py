"""Peak memory of a step: what its process, or the GPU, held at most, beyond Python, its libraries and the images."""

import multiprocessing
import resource

import torch

from benchmarks.steps import builder, random_images


def _resident_peak():
    """Return the most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peak(case):
    torch.set_num_threads(2)
    images, build = random_images(case.device), builder(case.what)  # imports a peer
    images[:64] @ images[:64].T  # starts the threads
    before = _resident_peak()
    step = build(case, images)
    for _ in range(3):
        step()
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20 - images.nbytes / 2**20
    return _resident_peak() - before


def peak_mib(case):
    """Return how many MiB model, optimiser and three steps take at most, measured in a new process.

    On a CPU, that is resident memory: it includes what PyTorch's libraries set up on first use, some MiB.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.steps", "torch._dynamo"])  # Adam's first step would import the second
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case,))
