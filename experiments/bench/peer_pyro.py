"""M2 on Pyro, the label summed out by its parallel enumeration; its checks are switched off, which makes it faster."""

from itertools import chain, repeat

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from experiments.bench.run import NUM_CLASSES, Z_DIM
from vae.data import NO_LABEL, SemiSupervisedBatches


def network(in_dim, out_dim, activation=nn.ReLU):
    """One hidden layer of 500."""
    return nn.Sequential(nn.Linear(in_dim, 500), activation(), nn.Linear(500, out_dim))


def concatenate(values, y):
    """Append one-hot labels to (…, N), both repeated to one batch shape: (B, N) and (K, 1, K) -> (K, B, N + K)."""
    shape = torch.broadcast_shapes(values.shape[:-1], y.shape[:-1])
    return torch.cat([values.expand(*shape, -1), y.expand(*shape, -1)], -1)


class M2(nn.Module):
    """p(y) uniform, p(z) = Normal(0, I), p(x|y, z) Bernoulli; q(y|x) Categorical, q(z|x, y) Normal."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.encoder = network(784 + NUM_CLASSES, 2 * Z_DIM, activation)
        self.decoder = network(Z_DIM + NUM_CLASSES, 784, activation)
        self.classifier = network(784, NUM_CLASSES, activation)

    def model(self, x, y=None):
        """The joint distribution of labels, latents and pixels x (B, 784); labels y (B, K) may be given."""
        pyro.module("m2", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z_DIM), 1).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(NUM_CLASSES)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(concatenate(z, y))).to_event(1), obs=x)

    def guide(self, x, y=None):
        """The approximate posterior of latents, and of labels where they are not given."""
        with pyro.plate("images", len(x)):
            if y is None:
                posterior = dist.OneHotCategorical(logits=self.classifier(x))
                y = pyro.sample("y", posterior, infer={"enumerate": "parallel"})
            mean, log_scale = self.encoder(concatenate(x, y)).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def build_update():
    """Return a function that makes one update on x (B, 784)."""
    pyro.clear_param_store()
    m2 = M2()
    inference = SVI(m2.model, m2.guide, pyro.optim.Adam({"lr": 3e-4}), TraceEnum_ELBO(max_plate_nesting=1))
    return pyro.validation_enabled(False)(inference.step)


class TutorialM2(M2):
    """Networks, settings and auxiliary loss, the labels' cross-entropy, of https://pyro.ai/examples/ss-vae.html.

    Softplus, weights that start at Normal(0, 0.001²), gray images, batches of 200, Adam with its rates. Not from there:
    logits instead of probabilities; and a step on all labels after every unlabeled batch, not once in an epoch.
    """

    def __init__(self):
        super().__init__(nn.Softplus)
        for hidden in (self.encoder[0], self.decoder[0], self.classifier[0]):
            nn.init.normal_(hidden.weight, std=1e-3)
            nn.init.normal_(hidden.bias, std=1e-3)

    def label_model(self, x, y):
        """The distribution of given labels y (B, K), weighted."""
        pyro.module("m2", self)
        with pyro.plate("images", len(x)), pyro.poutine.scale(scale=46):
            pyro.sample("given y", dist.OneHotCategorical(logits=self.classifier(x)), obs=y)


def tutorial_learner(task):
    """Return a function that makes an update without labels and one with, and one that classifies images."""
    num_labeled = int((task.y != NO_LABEL).sum())
    batches = SemiSupervisedBatches(task.data.train_images, task.y, num_labeled, 200, task.generator)
    stream = chain.from_iterable(repeat(batches))
    pyro.clear_param_store()
    m2, optimizer = TutorialM2(), pyro.optim.Adam({"lr": 0.00042, "betas": (0.9, 0.999)})
    bound = SVI(m2.model, m2.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    cross_entropy = SVI(m2.label_model, lambda x, y: None, optimizer, Trace_ELBO())

    @pyro.validation_enabled(False)
    def update():
        x, y, x_unlabeled = next(stream)
        x, y = x.flatten(1), nn.functional.one_hot(y, NUM_CLASSES).float()
        bound.step(x_unlabeled.flatten(1))
        bound.step(x, y)
        cross_entropy.step(x, y)

    return update, lambda x: m2.classifier(x.flatten(1)).argmax(-1)
