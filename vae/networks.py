"""Encoder, decoder and classifier: multilayer perceptrons that return distributions.

Shapes: B batch, K classes, X data dimensions, Z latents, H hidden units.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal


def diagonal_normal(mean, scale):
    """Normal(mean, diag(scale²)) over the last dimension, so that `log_prob` has the batch's shape."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class MLP(nn.Module):
    """Fully connected layers with ReLU between them; a label y, if any, adds a learned column to the first layer.

    The column is what a one-hot y, concatenated to the input, would add: W [x, one_hot(y)] = W_x x + W_y[:, y].
    Written so, the 784-wide product W_x x is computed once per image, however many labels broadcast against it.
    Columns start at Normal(0, 1), many times a linear layer's scale: a label that can hardly be seen at first tends to
    go unused, because by then the latents have learned to say what it would have said.
    """

    def __init__(self, in_dim, hidden_dims, out_dim, num_classes=0):
        super().__init__()
        first, *_ = hidden_dims
        self.first = nn.Linear(in_dim, first)
        self.label_column = nn.Embedding(num_classes, first) if num_classes else None
        widths = pairwise([*hidden_dims, out_dim])
        self.rest = nn.Sequential(*(layer for a, b in widths for layer in (nn.ReLU(), nn.Linear(a, b))))

    def forward(self, x, y=None):
        """Map (B, X) to (B, out_dim), or, with labels of shape (K, 1) or (K, B) instead of (B,), to (K, B, out_dim)."""
        if (y is None) != (self.label_column is None):
            raise ValueError("a network made with num_classes needs labels, and one made without takes none")
        hidden = self.first(x)  # (B, H)
        if self.label_column is not None:
            hidden = hidden + self.label_column(y)  # (B, H) + (B, H) -> (B, H), or + (K, 1, H) -> (K, B, H)
        output = self.rest(hidden)
        return output.to(torch.promote_types(output.dtype, torch.float32))  # densities need more than bfloat16


class Encoder(nn.Module):
    """The approximate posterior q(z|x), or q(z|x, y) with `num_classes`: a diagonal Normal."""

    def __init__(self, x_dim, z_dim, hidden_dims, num_classes=0):
        super().__init__()
        self.x_dim, self.z_dim = x_dim, z_dim
        self.network = MLP(x_dim, hidden_dims, 2 * z_dim, num_classes)

    def forward(self, x, y=None):
        """Return the posterior over z, of batch shape (B,), or (K, B) for labels of shape (K, 1) or (K, B)."""
        mean, log_scale = self.network(x, y).chunk(2, dim=-1)
        return diagonal_normal(mean, log_scale.exp())


class BernoulliDecoder(nn.Module):
    """The likelihood p(x|z), or p(x|y, z), of pixels in {0, 1}: independent Bernoullis."""

    def __init__(self, z_dim, x_dim, hidden_dims, num_classes=0):
        super().__init__()
        self.network = MLP(z_dim, hidden_dims, x_dim, num_classes)

    def forward(self, z, y=None):
        """Return the likelihood of x. Unvalidated, so that grey pixels get their expected log-likelihood as well."""
        return Independent(Bernoulli(logits=self.network(z, y), validate_args=False), 1, validate_args=False)

    @staticmethod
    def check(x):
        """Raise ValueError unless every value is a number in [0, 1]."""
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"pixels must lie in [0, 1], but these span [{low:g}, {high:g}]; divide 8-bit images by 255"
            )


class GaussianDecoder(nn.Module):
    """The likelihood p(x|z), or p(x|y, z), of real x: a Normal with one scale for all dimensions, learned or given.

    A learned scale is a function of z. It is the same in every dimension because a free scale for each can explain the
    data's spread by noise alone, and then z goes unused; with a single scale, as in probabilistic PCA, it cannot.
    """

    def __init__(self, z_dim, x_dim, hidden_dims, num_classes=0, scale=None):
        super().__init__()
        self.scale = scale
        self.network = MLP(z_dim, hidden_dims, x_dim + (scale is None), num_classes)

    def forward(self, z, y=None):
        """Return the likelihood of x."""
        output = self.network(z, y)
        if self.scale is not None:
            return diagonal_normal(output, torch.full_like(output, self.scale))
        mean, log_scale = output[..., :-1], output[..., -1:]
        return diagonal_normal(mean, log_scale.exp().expand_as(mean))

    @staticmethod
    def check(x):
        """Raise ValueError unless every value is finite."""
        if not x.isfinite().all():
            raise ValueError("x must be finite, but it holds NaN or infinite values")


class Classifier(nn.Module):
    """q(y|x): a Categorical over K classes."""

    def __init__(self, x_dim, num_classes, hidden_dims):
        super().__init__()
        self.num_classes = num_classes
        self.network = MLP(x_dim, hidden_dims, num_classes)

    def forward(self, x):
        """Return the distribution over labels, of batch shape (B,)."""
        return Categorical(logits=self.network(x), validate_args=False)

    def classify(self, x):
        """Return the most probable label: (B, X) -> (B,)."""
        return self(x).logits.argmax(-1)
