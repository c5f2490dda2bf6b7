"""Gaussian decoders of real x, by where their scale σ comes from: the choice that makes training stable, or not.

A single scale, as in probabilistic PCA, cannot explain the data's spread in one dimension by noise and in another by z.
A scale for each dimension can, and then z may go unused. Shapes as in `vae.networks`.
"""

import torch
from torch import nn
from torch.distributions import Independent, Normal

from vae.distributions import diagonal_normal
from vae.networks import MLP, Decoder


class GaussianDecoder(Decoder):
    """One scale for each z, learned as a function of it."""

    num_scales = 1

    def forward(self, z, y=None):
        mean, log_scale = self.network(z, y).tensor_split([self.x_shape[0]], dim=-len(self.x_shape))
        return diagonal_normal(mean, self.scale(log_scale).expand_as(mean), len(self.x_shape))

    def scale(self, log_scale):
        """Return σ, of a shape that expands to x's; a network of images says it once per pixel, which is averaged."""
        return log_scale.mean(tuple(range(-len(self.x_shape), 0)), keepdim=True).exp()

    @staticmethod
    def check(x):
        """Raise ValueError unless every value is finite."""
        if not x.isfinite().all():
            raise ValueError("x must be finite, but it holds NaN or infinite values")


class DiagonalGaussianDecoder(GaussianDecoder):
    """A scale for each dimension and z, learned as a function of z, between the two `scale_limits` if there are any.

    Without limits, wherever the data have no spread at all σ falls to 0, the density grows for ever, and the first
    surprise costs as much. The data set them: dequantized 8-bit pixels cannot be known better than to 1/(256 √12), and
    no number in [0, 1] varies by more than 1/2.
    """

    def __init__(self, z_dim, x_shape, hidden_dims, num_classes=0, network=MLP, scale_limits=None):
        super().__init__(z_dim, x_shape, hidden_dims, num_classes, network)
        self.scale_limits = scale_limits

    @property
    def num_scales(self):
        """One for each output that is a mean."""
        return self.x_shape[0]

    def scale(self, log_scale):
        if not self.scale_limits:
            return log_scale.exp()
        low, high = self.scale_limits
        return low + (high - low) * log_scale.sigmoid()


class SharedGaussianDecoder(GaussianDecoder):
    """One scale for everything: a parameter that starts at `initial_scale`, or the number `fixed_scale`.

    A fixed scale of 1 is the squared error.
    """

    num_scales = 0

    def __init__(self, z_dim, x_shape, hidden_dims, num_classes=0, network=MLP, fixed_scale=None, initial_scale=1.0):
        super().__init__(z_dim, x_shape, hidden_dims, num_classes, network)
        if fixed_scale is None:
            self.log_scale = nn.Parameter(torch.tensor(initial_scale).log())
        self.fixed_scale = fixed_scale

    def scale(self, log_scale):
        return self.log_scale.exp() if self.fixed_scale is None else log_scale.new_tensor(self.fixed_scale)


class ColumnGaussianDecoder(GaussianDecoder):
    """σ = `scale_floor` + exp(`log_scale`) for each dimension, the same for every z, as in factor analysis.

    For the columns of a table. Unlike a scale that depends on z it cannot single out a few rows, and for a column
    without spread it approaches the floor.
    """

    num_scales = 0

    def __init__(self, z_dim, x_shape, hidden_dims, num_classes=0, network=MLP, scale_floor=0.1):
        super().__init__(z_dim, x_shape, hidden_dims, num_classes, network)
        self.scale_floor = scale_floor
        self.log_scale = nn.Parameter(torch.zeros(self.x_shape))

    def scale(self, log_scale):
        return self.scale_floor + self.log_scale.exp()


class OptimalNormal(Normal):
    """Normals of one common scale: the root mean square error of the very values whose `log_prob` is asked.

    For training only, because a density does not know its value. Keeps a running mean of σ² in `mean_square`, a scalar.
    """

    def __init__(self, mean, mean_square):
        super().__init__(mean, mean_square.sqrt().expand_as(mean), validate_args=False)
        self.mean_square = mean_square

    def log_prob(self, value):
        """Return log p(value) in nats, elementwise, at the scale where its sum is largest."""
        mean_square = (value - self.mean).square().mean()
        self.mean_square.lerp_(mean_square.detach(), 0.01)
        return Normal(self.mean, mean_square.sqrt(), validate_args=False).log_prob(value)


class OptimalGaussianDecoder(SharedGaussianDecoder):
    """One scale for everything, in closed form: σ² is the mean squared error, where the likelihood is largest.

    Rybkin et al. 2021, equation 5. In training σ² is the batch's, so an example's density depends on the batch; a
    running mean is kept for evaluation. Raises ValueError for `num_classes`, and says why.
    """

    def __init__(self, z_dim, x_shape, hidden_dims, num_classes=0, network=MLP):
        if num_classes:
            raise ValueError(
                f"num_classes = {num_classes}: a scale in closed form would pool the errors of all labels, likely or "
                "not; where labels are summed over, take SharedGaussianDecoder, which learns its one scale"
            )
        super().__init__(z_dim, x_shape, hidden_dims, network=network, fixed_scale=1.0)
        self.register_buffer("mean_square", torch.ones(()))

    def forward(self, z, y=None):
        if not self.training:
            return super().forward(z, y)
        return Independent(OptimalNormal(self.network(z, y), self.mean_square), len(self.x_shape), validate_args=False)

    def scale(self, log_scale):
        return self.mean_square.sqrt()
