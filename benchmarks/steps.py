"""What is measured: a `Case` says which step, on what sizes; `builder` turns it into a function that runs one step."""

import importlib
import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch.optim.lr_scheduler import OneCycleLR

from vae.data import Batches, binarize
from vae.evaluation import log_likelihood
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.training import evaluate_mean

MARGINALIZATIONS = {
    "m2_exact": marginalize,
    "m2_chunked": partial(marginalize, chunk_size=10),
    "m2_loop": marginalize_loop,
    "m2_topk": partial(marginalize_topk, k=1),
}
PEERS = {"pythae_m1": "pythae", "pyro_m2": "pyro"}  # and the package that each needs
WHAT = ("m1", "m2_exact", "m2_loop", "m2_topk", "evaluation", "iwae", *PEERS)  # and m2_chunked, for many labels


@dataclass(frozen=True)
class Case:
    """One step: `what`, `dtype` fp32 or bf16, `mode` eager or a mode of torch.compile."""

    what: str
    batch: int
    dtype: str = "fp32"
    device: str = "cpu"
    mode: str = "eager"
    num_classes: int = 10
    z_dim: int = 50
    num_samples: int = 20  # of "iwae"

    def autocast(self):
        """Run the layers in this case's precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16")


def random_images(device="cpu", rows=10_000):
    """Return images (rows, 784) of random black and white pixels, as many of them white as in MNIST."""
    generator = torch.Generator(device).manual_seed(0)
    return (torch.rand(rows, 784, generator=generator, device=device) < 0.13).float()


def build_model(case):
    """Return the untrained model: M1 784-500-500-z, or M2 with one hidden layer of 500 in each network."""
    torch.manual_seed(0)
    z_dim, num_classes = case.z_dim, case.num_classes
    if case.what not in MARGINALIZATIONS:
        return VAE(Encoder(784, z_dim, [500, 500]), BernoulliDecoder(z_dim, 784, [500, 500])).to(case.device)
    networks = Encoder(784, z_dim, [500], num_classes), BernoulliDecoder(z_dim, 784, [500], num_classes)
    return SemiSupervisedVAE(*networks, Classifier(784, num_classes, [500])).to(case.device)


def endless_batches(case, images):
    """Yield batches (B, 784) of `images`, binarised anew, epoch after epoch."""
    batches = Batches(images, case.batch, torch.Generator(case.device).manual_seed(0), binarize)
    while True:
        yield from batches


def training_step(loss_fn, model, batches, case, lr=1e-3, total_steps=1_000_000):
    """Return a function that takes the next batch and makes one update: what `vae.training.fit` does for each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps)

    def step():
        with case.autocast():
            loss = loss_fn(next(batches))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{case}: the loss became {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return step


def build_training(case, images):
    """Return the training step of M1, or of M2 on unlabelled images."""
    model = build_model(case)

    def loss_fn(x):
        if case.what == "m1":
            return -model.elbo(x).mean()
        return -model.unlabeled_elbo(x, MARGINALIZATIONS[case.what]).mean()

    if case.mode != "eager":
        loss_fn = torch.compile(loss_fn, mode=case.mode)
    return training_step(loss_fn, model, endless_batches(case, images), case)


def build_evaluation(case, images):
    """Return M1's evaluation of one batch: the ELBO ("evaluation"), or log p(x) from samples ("iwae")."""
    model, x = build_model(case).eval(), images[: case.batch]

    def step():
        with case.autocast():
            if case.what == "iwae":
                log_likelihood(model, x, case.num_samples)
            else:
                evaluate_mean(model.elbo, x, batch_size=case.batch)

    return step


def installed(what):
    """Tell whether the package that `what` needs is there."""
    return what not in PEERS or find_spec(PEERS[what]) is not None


def builder(what):
    """Return the function of a case and images that builds the step `what`; imports a peer only here."""
    if what in PEERS:
        return importlib.import_module(f"benchmarks.peer_{PEERS[what]}").build
    return build_evaluation if what in ("evaluation", "iwae") else build_training
