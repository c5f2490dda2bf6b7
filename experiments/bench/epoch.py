"""What is measured: an epoch of twenty batches, of one of our models or Pyro's M2; `cost` measures it by itself."""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from vae.conv import ConvNet, DeconvNet
from vae.data import Batches, binarize
from vae.marginalization import marginalize, marginalize_topk
from vae.networks import MLP
from vae.recipes import build_m1, build_m2
from vae.training import Recipe, fit

MARGINALIZATIONS = {"m2_exact": marginalize, "m2_topk": partial(marginalize_topk, k=1)}
Z_DIM, NUM_CLASSES = 50, 10


def random_images(batch, x_shape=(784,)):
    """Return twenty batches (N, *X) of black and white pixels, as many of them white as in MNIST."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(20 * batch, *x_shape, generator=generator).lt_(0.13)  # in place: see `cost`


def build_model(what, x_shape=(784,), num_classes=NUM_CLASSES):
    """Return the untrained model: M1 784-500-500-50, or M2 with one hidden layer of 500 in each network.

    For images (C, H, W), convolutions stand before them, or behind.
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


def _cost(batch, x_shape=(784,), **case):
    torch.set_num_threads(1)
    images = random_images(batch, x_shape)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # sets up what the first product needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_epoch(images[: 2 * batch], batch, x_shape=x_shape, **case)()  # the second has Adam's state from the start
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    train = build_epoch(images, batch, x_shape=x_shape, **case)
    start = time.process_time()
    train()
    seconds = time.process_time() - start
    return {"cpu_seconds_per_1000_images": 1000 * seconds / len(images), "peak_mib": kib / 2**10}


def cost(**case):
    """Return CPU seconds in one thread, and the MiB of two steps beyond the images, some of PyTorch's own included.

    In a process of its own. Images must be made in place: memory that they had freed would be taken first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # Adam's first step would import the second
    with ProcessPoolExecutor(1, context) as executor:
        return executor.submit(_cost, **case).result()
