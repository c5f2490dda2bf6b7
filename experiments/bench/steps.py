"""What is measured: a `Case` says which step, on what sizes; `build_step` makes the function that runs one."""

import importlib
import math
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain, repeat

import torch
from torch.optim.lr_scheduler import OneCycleLR

from vae.conv import ConvNet, DeconvNet
from vae.data import Batches, binarize
from vae.evaluation import evaluate_mean, log_likelihood
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder

MARGINALIZATIONS = {
    "m2_exact": marginalize,
    "m2_chunked": partial(marginalize, chunk_size=10),
    "m2_loop": marginalize_loop,
    "m2_topk": partial(marginalize_topk, k=1),
}
EVALUATIONS = ("evaluation", "iwae")
PEERS = {"pythae_m1": "pythae", "pyro_m2": "pyro"}  # and the package that each needs
MISSING = [what for what, package in PEERS.items() if find_spec(package) is None]
WHAT = ("m1", "m2_exact", "m2_loop", "m2_topk", *EVALUATIONS, *PEERS)  # and m2_chunked, for many labels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
THREADS = 2  # for all that is not measured with 1 as well


@dataclass(frozen=True)
class Case:
    """One step: `what`, `dtype` one of DTYPES, `mode` eager or a mode of torch.compile."""

    what: str
    batch: int
    dtype: str = "fp32"
    device: str = "cpu"
    mode: str = "eager"
    num_classes: int = 10
    z_dim: int = 50
    num_samples: int = 20  # of "iwae"
    threads: int = THREADS
    x_shape: tuple = (784,)  # or (C, H, W), for convolutional networks

    def autocast(self):
        """Run the layers in this case's precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16")


@cache
def random_images(device="cpu", rows=10_000, x_shape=(784,)):
    """Return images (rows, *x_shape) of random black and white pixels, as many of them white as in MNIST."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(rows, *x_shape, generator=generator, device=device).lt_(0.13)  # in place: see `peak_mib`


def build_model(case):
    """Return the untrained model: M1 784-500-500-z, or M2 with one hidden layer of 500 in each network.

    For images (C, H, W), convolutions stand before them, or behind.
    """
    x_shape, z_dim, num_classes = case.x_shape, case.z_dim, case.num_classes
    encode, decode = (MLP, MLP) if len(x_shape) == 1 else (ConvNet, DeconvNet)
    if case.what not in MARGINALIZATIONS:
        encoder = Encoder(x_shape, z_dim, [500, 500], network=encode)
        return VAE(encoder, BernoulliDecoder(z_dim, x_shape, [500, 500], network=decode)).to(case.device)
    encoder = Encoder(x_shape, z_dim, [500], num_classes, network=encode)
    decoder = BernoulliDecoder(z_dim, x_shape, [500], num_classes, network=decode)
    return SemiSupervisedVAE(encoder, decoder, Classifier(x_shape, num_classes, [500], encode)).to(case.device)


def build_training(case, lr=1e-3, total_steps=1_000_000):
    """Return what `vae.training.fit` does with a batch (B, *X), of M1 or of M2 without labels; it returns the loss."""
    model = build_model(case)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps)

    def loss_fn(x):
        bound = model.elbo(x) if case.what == "m1" else model.unlabeled_elbo(x, MARGINALIZATIONS[case.what])
        return -bound.mean()

    if case.mode != "eager":
        loss_fn = torch.compile(loss_fn, mode=case.mode)

    def update(x):
        with case.autocast():
            loss = loss_fn(x)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{case}: the loss became {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return update


def build_evaluation(case):
    """Return M1's evaluation of x (B, *X): the ELBO ("evaluation"), or log p(x) from samples ("iwae")."""
    model = build_model(case).eval()
    if case.what == "iwae":
        evaluate = partial(log_likelihood, model, num_samples=case.num_samples)
    else:
        evaluate = partial(evaluate_mean, model.elbo, batch_size=case.batch)
    return case.autocast()(evaluate)


def builder(what):
    """Return the function of a case that builds what a step does with a batch; imports a peer only here."""
    if what in PEERS:
        return importlib.import_module(f"experiments.bench.peer_{PEERS[what]}").build_training
    return build_evaluation if what in EVALUATIONS else build_training


def build_step(case, images):
    """Return a function that runs a step on a batch of `images`: in training the next, binarized anew."""
    torch.manual_seed(0)
    work = builder(case.what)(case)
    if case.what in EVALUATIONS:
        return lambda: work(images[: case.batch])
    epoch = Batches(images, case.batch, torch.Generator(case.device).manual_seed(0), binarize)
    batches = chain.from_iterable(repeat(epoch))
    return lambda: work(next(batches))
