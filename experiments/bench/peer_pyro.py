"""M2 on Pyro, the label summed out by its parallel enumeration; labels are one-hot columns, as in its own example.

Pyro's checks of every distribution are switched off, which makes it faster.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn


def network(in_dim, out_dim):
    """One hidden layer of 500."""
    return nn.Sequential(nn.Linear(in_dim, 500), nn.ReLU(), nn.Linear(500, out_dim))


def concatenate(values, y):
    """Append one-hot labels to (…, N), both repeated to one batch shape: (B, N) and (K, 1, K) -> (K, B, N + K)."""
    shape = torch.broadcast_shapes(values.shape[:-1], y.shape[:-1])
    return torch.cat([values.expand(*shape, -1), y.expand(*shape, -1)], -1)


class M2(nn.Module):
    """p(y) uniform, p(z) = Normal(0, I), p(x|y, z) Bernoulli; q(y|x) Categorical, q(z|x, y) Normal."""

    def __init__(self, z_dim, num_classes):
        super().__init__()
        self.z_dim, self.num_classes = z_dim, num_classes
        self.encoder = network(784 + num_classes, 2 * z_dim)
        self.decoder = network(z_dim + num_classes, 784)
        self.classifier = network(784, num_classes)

    def model(self, x):
        """The joint distribution of labels, latents and pixels x (B, 784)."""
        pyro.module("m2", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.z_dim), 1).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.num_classes)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(concatenate(z, y))).to_event(1), obs=x)

    def guide(self, x):
        """The approximate posterior of labels and latents."""
        with pyro.plate("images", len(x)):
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
