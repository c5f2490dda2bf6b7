"""Convolutional networks in place of `MLP`: Encoder(..., network=ConvNet), BernoulliDecoder(..., network=DeconvNet).

They follow the protocol in `vae.networks`. Images have shape (C, H, W), any of each. A label reaches the MLP between
the image and its smallest feature map, so an encoder's convolutions run once per image, whatever the labels.
functools.partial(ConvNet, channels=…) sets the widths.
"""

from itertools import pairwise

import torch
from torch import nn

from vae.networks import MLP


def _halved(shape, times):
    """Return the size of images (C, H, W) and what it is halved to, rounded up: [(H, W), …, the smallest]."""
    _, height, width = shape
    sizes = [(height, width)]
    for _ in range(times):
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    return sizes


class ConvNet(MLP):
    """Convolutions of stride 2, then an MLP: (…, C, H, W) -> (…, *out_shape)."""

    def __init__(self, in_shape, hidden_dims, out_shape, num_classes=0, channels=(32, 64)):
        depth, height, width = in_shape
        if width in (1, 3, 4) and depth not in (1, 3, 4) and min(depth, height) > width:
            found = tuple(in_shape)
            raise ValueError(f"{found} can only be (H, W, C); it must be (C, H, W), as of x.permute(0, 3, 1, 2)")
        *_, smallest = _halved(in_shape, len(channels))
        super().__init__((channels[-1], *smallest), hidden_dims, out_shape, num_classes)
        self.convolutions = nn.Sequential()
        for a, b in pairwise((in_shape[0], *channels)):
            self.convolutions.extend([nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(inplace=True)])

    def forward(self, x, y=None):
        """Map (…, C, H, W) to (…, *out_shape); labels broadcast against the leading dimensions."""
        features = self.convolutions(x.reshape(-1, *x.shape[-3:]))  # all leading dimensions are one batch to it
        return super().forward(features.reshape(*x.shape[:-3], *features.shape[-3:]), y)


class DeconvNet(MLP):
    """An MLP, then transposed convolutions that double the image: (…, Z) -> (…, C, H, W)."""

    def __init__(self, in_shape, hidden_dims, out_shape, num_classes=0, channels=(64, 32)):
        *sizes, smallest = _halved(out_shape, len(channels))
        super().__init__(in_shape, hidden_dims, (channels[0], *smallest), num_classes)
        self.deconvolutions = nn.Sequential()
        for (a, b), (h, w) in zip(pairwise((*channels, out_shape[0])), reversed(sizes), strict=True):
            even = (1 - h % 2, 1 - w % 2)  # an odd size is one less than twice the smaller one
            double = nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=even)
            self.deconvolutions.extend([nn.ReLU(inplace=True), double])

    def forward(self, z, y=None):
        """Map (…, Z) to (…, C, H, W); labels broadcast against the leading dimensions."""
        features = super().forward(z, y)  # (…, channels[0], h, w)
        images = self.deconvolutions(features.reshape(-1, *features.shape[-3:]))
        images = images.reshape(*features.shape[:-3], *images.shape[-3:])
        return images.to(torch.promote_types(images.dtype, torch.float32))
