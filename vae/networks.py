"""Encoder, decoders and classifier: networks that return distributions, and the protocol that they follow.

Shapes: B batch, K classes, X one example's shape, Z latents; … stands for any leading dimensions, such as S samples.

**The protocol.** A shape is a tuple, or a number for a vector.
- A *network* is made by `network(in_shape, hidden_dims, out_shape, num_classes=0)` and maps (…, *in_shape) to
  (…, *out_shape) in float32 or float64, whatever the autocast. An encoder's or a classifier's network has its last
  linear layer in `output`. `MLP` is one, `vae.conv` has two more. Encoders, decoders and classifiers hold theirs in
  `network`. All are `vae.saving.Module`s, so that a file can say how to make them again.
- *Labels* y are whole numbers, for a network made with `num_classes`, whose `label_embedding` is an nn.Embedding
  instead of None. They broadcast against the leading dimensions (B,): y (B,) is a label for each example, (K, 1) all K
  for each in one pass over x, (L, B) L for each, of its own. Results have the batch shape (B,), (K, B) or (L, B).
- An *encoder* maps x (…, *X), and y, to q(z|x) or q(z|x, y): event shape (Z,), batch shape (…), in `x_shape`, `z_dim`.
- A *decoder* maps z (…, Z), and y, to a likelihood of event shape X and batch shape (…); an example's density must
  depend on its own z and y alone. `check(x)` raises ValueError for values that it has no density for.
So a new decoder is one subclass of `Decoder`: `forward`, and `check` where pixels in [0, 1] are not what it models.
"""

import math
from itertools import pairwise
from numbers import Integral

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent

from vae.distributions import ContinuousBernoulli, check_pixels, diagonal_normal
from vae.saving import Module


def as_shape(size):
    """Return a tuple: `size` itself, or (size,) for a number."""
    return (int(size),) if isinstance(size, Integral) else tuple(int(n) for n in size)


class MLP(Module):
    """Fully connected layers, `activation` between them; a label y, if any, adds its embedding to the first layer.

    The embedding is what a one-hot y, concatenated to the input, would add: W [x, one_hot(y)] = W_x x + W_y[:, y].
    Written so, the wide product W_x x is computed once per example, however many labels broadcast against it.
    Embeddings start at Normal(0, 1), in `build_m2` at Normal(0, 3²), many times a linear layer's scale: a label that
    can hardly be seen at first tends to go unused, because the latents learn to say what it would have said.
    """

    def __init__(self, in_shape, hidden_dims, out_shape, num_classes=0, activation=nn.ReLU):
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape), as_shape(out_shape)
        first, *_ = hidden_dims
        self.input = nn.Linear(math.prod(self.in_shape), first)
        self.label_embedding = nn.Embedding(num_classes, first) if num_classes else None
        layers = [layer for a, b in pairwise(hidden_dims) for layer in (activation(), nn.Linear(a, b))]
        self.hidden = nn.Sequential(*layers, activation())
        self.output = nn.Linear(hidden_dims[-1], math.prod(self.out_shape))

    def forward(self, x, y=None):
        """Map (…, *in_shape) to (…, *out_shape)."""
        if (y is None) != (self.label_embedding is None):
            raise ValueError("a network made with num_classes needs labels, and one made without takes none")
        hidden = self.input(x.flatten(-len(self.in_shape)))  # (B, H)
        if self.label_embedding is not None:
            hidden = hidden + self.label_embedding(y)  # (B, H) + (B, H) -> (B, H), or + (K, 1, H) -> (K, B, H)
        output = self.output(self.hidden(hidden))
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # densities need more than bfloat16
        return output.unflatten(-1, self.out_shape)


class Encoder(Module):
    """The approximate posterior q(z|x), or q(z|x, y) with `num_classes`: a diagonal Normal."""

    def __init__(self, x_shape, z_dim, hidden_dims, num_classes=0, network=MLP):
        super().__init__()
        self.x_shape, self.z_dim = as_shape(x_shape), z_dim
        self.network = network(self.x_shape, hidden_dims, 2 * z_dim, num_classes)

    def forward(self, x, y=None):
        """Return the posterior over z: (B, *X) -> batch shape (B,), or with labels (K, B) or (L, B)."""
        mean, log_scale = self.network(x, y).chunk(2, dim=-1)
        return diagonal_normal(mean, log_scale.exp())


class Classifier(Module):
    """q(y|x): a Categorical over K classes; `from_encoder` if its hidden layers are those of a trained encoder."""

    def __init__(self, x_shape, num_classes, hidden_dims, network=MLP, from_encoder=False):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes = {num_classes} must be at least 2; data of one class are for a VAE")
        self.num_classes, self.from_encoder = num_classes, from_encoder
        self.network = network(x_shape, hidden_dims, num_classes)

    @property
    def new_layers(self):
        """The layers that no encoder has trained, for labels to teach first: all, or the last, as a linear probe."""
        return self.network.output if self.from_encoder else self

    def forward(self, x):
        """Return the distribution over labels, of batch shape (B,)."""
        return Categorical(logits=self.network(x), validate_args=False)

    def classify(self, x):
        """Return the most probable label: (B, *X) -> (B,)."""
        return self(x).logits.argmax(-1)


class Decoder(Module):
    """The likelihood p(x|z), or p(x|y, z) with `num_classes`: a subclass says which in `forward(z, y=None)`.

    Its network's outputs have the shape of x, and `num_scales` more in the first dimension: a Gaussian's.
    """

    check = staticmethod(check_pixels)
    num_scales = 0

    def __init__(self, z_dim, x_shape, hidden_dims, num_classes=0, network=MLP):
        super().__init__()
        self.x_shape = as_shape(x_shape)
        out_shape = (self.x_shape[0] + self.num_scales, *self.x_shape[1:])
        self.network = network(z_dim, hidden_dims, out_shape, num_classes)


class BernoulliDecoder(Decoder):
    """Pixels in {0, 1}: independent Bernoullis. Gray pixels get their expected log-likelihood, which is no density."""

    def forward(self, z, y=None):
        pixels = Bernoulli(logits=self.network(z, y), validate_args=False)
        return Independent(pixels, len(self.x_shape), validate_args=False)


class ContinuousBernoulliDecoder(Decoder):
    """Gray pixels in [0, 1]: a Bernoulli's formula *with* the normalizer that makes it a density."""

    def forward(self, z, y=None):
        pixels = ContinuousBernoulli(self.network(z, y), validate_args=False)
        return Independent(pixels, len(self.x_shape), validate_args=False)
