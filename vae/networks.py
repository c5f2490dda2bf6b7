"""Encoder, decoder and classifier: multilayer perceptrons that return distributions.

Shapes: B batch, K classes, X data dimensions, Z latents, H hidden units.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from vae.data import check_pixels
from vae.likelihoods import ContinuousBernoulli, IndependentBernoulli, OptimalNormal


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
        self.rest = nn.Sequential(*(layer for a, b in widths for layer in (nn.ReLU(inplace=True), nn.Linear(a, b))))

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
        return IndependentBernoulli(self.network(z, y))

    check = staticmethod(check_pixels)


class ContinuousBernoulliDecoder(BernoulliDecoder):
    """The likelihood of grey pixels in [0, 1]: a Bernoulli's formula *with* the normaliser that makes it a density."""

    def forward(self, z, y=None):
        """Return the likelihood of x."""
        return Independent(ContinuousBernoulli(self.network(z, y), validate_args=False), 1, validate_args=False)


class GaussianDecoder(nn.Module):
    """The likelihood p(x|z), or p(x|y, z), of real x: independent Normals. `scale` says where their scales come from.

    - a number: it is the scale, everywhere
    - "global": one for everything, a learned parameter
    - "optimal": one for everything, in closed form: σ² is the mean squared error, at which the likelihood is largest
      (Rybkin et al. 2021, equation 5). In training it is the batch's; a running mean of it is kept for evaluation
    - "example": one for each z, learned as a function of it
    - "pixel": one for each dimension and z, learned as a function of z

    The last two are kept between the two `scale_limits`, if there are any.

    A single scale, as in probabilistic PCA, cannot explain the data's spread in one dimension by noise and in another
    by z. A scale for each dimension can, and then z may go unused; and wherever the data have no spread at all it falls
    to 0, the density grows for ever, and the first surprise costs as much. The data set the limits: dequantised 8-bit
    pixels cannot be known better than to 1/(256 √12), and no number in [0, 1] varies by more than 1/2.
    """

    def __init__(self, z_dim, x_dim, hidden_dims, num_classes=0, scale="example", scale_limits=None):
        super().__init__()
        if isinstance(scale, str) and scale not in ("global", "optimal", "example", "pixel"):
            raise ValueError(f"scale = {scale!r} must be a number, 'global', 'optimal', 'example' or 'pixel'")
        if scale_limits and scale not in ("example", "pixel"):
            raise ValueError(f"scale = {scale!r} has no use for scale_limits; they are for 'example' and 'pixel'")
        self.x_dim, self.scale, self.scale_limits = x_dim, scale, scale_limits
        num_scales = {"example": 1, "pixel": x_dim}.get(scale, 0)
        self.network = MLP(z_dim, hidden_dims, x_dim + num_scales, num_classes)
        if scale == "global":
            self.log_scale = nn.Parameter(torch.zeros(()))
        if scale == "optimal":
            self.register_buffer("mean_square", torch.ones(()))

    def forward(self, z, y=None):
        """Return the likelihood of x."""
        output = self.network(z, y)
        mean, log_scale = output[..., : self.x_dim], output[..., self.x_dim :]
        if self.scale == "optimal":
            if self.training:
                return Independent(OptimalNormal(mean, self.mean_square), 1, validate_args=False)
            scale = self.mean_square.sqrt()
        elif self.scale == "global":
            scale = self.log_scale.exp()
        elif self.scale_limits:
            low, high = self.scale_limits
            scale = low + (high - low) * log_scale.sigmoid()
        elif isinstance(self.scale, str):
            scale = log_scale.exp()
        else:
            scale = torch.as_tensor(self.scale, dtype=mean.dtype, device=mean.device)
        return diagonal_normal(mean, scale.expand_as(mean))

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
