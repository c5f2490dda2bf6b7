"""M2 on Pyro, the label summed out by its parallel enumeration; labels are one-hot columns, as in its own example.

Pyro's checks of every distribution are switched off, which makes it faster.
"""

from itertools import chain, repeat

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from vae.data import SemiSupervisedBatches


def network(in_dim, out_dim, activation=nn.ReLU):
    """One hidden layer of 500."""
    return nn.Sequential(nn.Linear(in_dim, 500), activation(), nn.Linear(500, out_dim))


def concatenate(values, y):
    """Append one-hot labels to (…, N), both repeated to one batch shape: (B, N) and (K, 1, K) -> (K, B, N + K)."""
    shape = torch.broadcast_shapes(values.shape[:-1], y.shape[:-1])
    return torch.cat([values.expand(*shape, -1), y.expand(*shape, -1)], -1)


class M2(nn.Module):
    """p(y) uniform, p(z) = Normal(0, I), p(x|y, z) Bernoulli; q(y|x) Categorical, q(z|x, y) Normal."""

    def __init__(self, z_dim, num_classes, activation=nn.ReLU):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, num_classes
        self.encoder = network(784 + num_classes, 2 * z_dim, activation)
        self.decoder = network(z_dim + num_classes, 784, activation)
        self.classifier = network(784, num_classes, activation)

    def model(self, x, y=None):
        """The joint distribution of labels, latents and pixels x (B, 784); labels y (B, K) may be given."""
        pyro.module("m2", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.z_dim), 1).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.num_classes)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(concatenate(z, y))).to_event(1), obs=x)

    def guide(self, x, y=None):
        """The approximate posterior of latents, and of labels where they are not given."""
        with pyro.plate("images", len(x)):
            if y is None:
                posterior = dist.OneHotCategorical(logits=self.classifier(x))
                y = pyro.sample("y", posterior, infer={"enumerate": "parallel"})
            mean, log_scale = self.encoder(concatenate(x, y)).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def build_training(case):
    """Return a function that makes one update on x (B, 784)."""
    pyro.clear_param_store()
    m2 = M2(case.z_dim, case.num_classes)
    optimizer = pyro.optim.Adam({"lr": 3e-4})
    inference = SVI(m2.model, m2.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))

    def update(x):
        with pyro.validation_enabled(False):
            inference.step(x)

    return update


class TutorialM2(M2):
    """The networks of Pyro's tutorial on the semi-supervised VAE, and its auxiliary loss, the labels' cross-entropy.

    From the tutorial (https://pyro.ai/examples/ss-vae.html, examples/vae/ss_vae_M2.py): one hidden layer of 500 with
    softplus, which starts at Normal(0, 0.001²), 50 latents, gray images, Adam with its rates, batches of 200, and the
    cross-entropy's weight of 46, with a step of its own after that on the bound. Not from there: logits instead of
    probabilities; and a step on all labels after every unlabeled batch, where the tutorial, with 100 labels, would
    make one in an epoch.
    """

    def __init__(self, z_dim=50, num_classes=10):
        super().__init__(z_dim, num_classes, nn.Softplus)
        for hidden in (self.encoder[0], self.decoder[0], self.classifier[0]):
            nn.init.normal_(hidden.weight, std=1e-3)
            nn.init.normal_(hidden.bias, std=1e-3)

    def label_model(self, x, y):
        """The distribution of given labels y (B, K), weighted."""
        pyro.module("m2", self)
        with pyro.plate("images", len(x)), pyro.poutine.scale(scale=46):
            pyro.sample("given y", dist.OneHotCategorical(logits=self.classifier(x)), obs=y)

    def label_guide(self, x, y):
        """Nothing is hidden there."""

    def classify(self, x):
        """Return the most probable label: images (B, 1, 28, 28) -> (B,)."""
        return self.classifier(x.flatten(1)).argmax(-1)


def build_learner(task, method):
    """Return a function that makes an update without labels and one with, and one that classifies; no `method`."""
    images = task.data.train_images
    rows = images[task.labeled], task.labels, images[task.unlabeled]
    batches = chain.from_iterable(repeat(SemiSupervisedBatches(*rows, len(task.labels), 200, task.generator)))
    pyro.clear_param_store()
    m2, optimizer = TutorialM2(), pyro.optim.Adam({"lr": 0.00042, "betas": (0.9, 0.999)})
    bound = SVI(m2.model, m2.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    cross_entropy = SVI(m2.label_model, m2.label_guide, optimizer, Trace_ELBO())

    def update():
        x, y, x_unlabeled = next(batches)
        x, y = x.flatten(1), nn.functional.one_hot(y, m2.num_classes).float()
        with pyro.validation_enabled(False):
            bound.step(x_unlabeled.flatten(1))
            bound.step(x, y)
            cross_entropy.step(x, y)

    return update, m2.classify
