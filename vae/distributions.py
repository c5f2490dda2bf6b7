"""Likelihoods that torch.distributions lacks, or computes with less precision."""

import math
from typing import ClassVar

import torch
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.nn.functional import softplus


def diagonal_normal(mean, scale, event_dims=1):
    """Return Normal(mean, diag(scale²)) over the last `event_dims` dimensions: `log_prob` has the batch's shape."""
    return Independent(Normal(mean, scale, validate_args=False), event_dims, validate_args=False)


def check_pixels(x):
    """Raise ValueError unless every value is a number in [0, 1]."""
    low, high = x.aminmax() if x.numel() else (0, 0)
    if not (low >= 0 and high <= 1):
        remedy = "divide 8-bit images by 255, and x.clamp(0, 1) what rounding left outside"
        raise ValueError(f"pixels must lie in [0, 1], but these span [{low.item()}, {high.item()}]; {remedy}")


class ContinuousBernoulli(Distribution):
    """The density of x in [0, 1] proportional to exp(x · logit): a Bernoulli's formula *with* its normalizer.

    Loaiza-Ganem & Cunningham 2019, equation 8. torch.distributions has one, but computes the normalizer from clamped
    probabilities: beyond logits of ±16 it stays constant, by 0.6 nats too low at 30, and its gradient is 0.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}

    def __init__(self, logits, validate_args=None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def log_normalizer(self):
        """Return log(l / tanh(l / 2)) for logits l, and its series where l is near 0."""
        size = self.logits.abs()
        small = size < 0.1
        safe = size.masked_fill(small, 1)  # so that no gradient is NaN where the series is taken
        series = math.log(2) + size**2 / 12 - 7 * size**4 / 1440
        return torch.where(small, series, safe.log() - (safe / 2).tanh().log())

    def log_prob(self, value):
        """Return log p(value) in nats, elementwise."""
        return value * self.logits - softplus(self.logits) + self.log_normalizer()

    @property
    def mean(self):
        """1 / (1 − exp(−l)) − 1 / l for logits l, and its series where l is near 0."""
        small = self.logits.abs() < 0.1
        safe = self.logits.masked_fill(small, 1)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)

    def sample(self, sample_shape=()):
        """Draw by the inverse of the distribution function."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, device=self.logits.device, dtype=self.logits.dtype)
        size = self.logits.abs().expand(shape).detach()
        small = size < 1e-3
        safe = size.masked_fill(small, 1)
        x = torch.where(small, u, torch.log1p(-u * -torch.expm1(-safe)).neg() / safe)  # of logit −size
        return torch.where(self.logits > 0, 1 - x, x)
