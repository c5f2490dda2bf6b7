"""What M2 has never seen: the bound on log p(x) below which the page says so, and how often that is right.

The threshold is chosen on validation images. What it does is counted on test images, and on kinds of image that no
model here was trained on.
"""

import torch
from torch.nn.functional import avg_pool1d, interpolate

from vae.evaluation import in_batches

FALSE_ALARMS = 0.02  # of the validation images
NUM_IMAGES = 1000  # of each kind
NUM_POINTS, INK_RADIUS, PEN = 200, 8.5, 1.8  # of a scribble: on its curve; pixels around its middle; width in pixels


def noise(z_dim):
    """Return the draw of noise (Z,) at which the page computes every bound."""
    return torch.randn(z_dim, generator=torch.Generator().manual_seed(2014))


def bounds(m2, images):
    """Return −U(x) of images (N, 1, 28, 28), the bound on log p(x) at the page's noise: (N,)."""
    drawn = noise(m2.encoder.z_dim)
    return in_batches(lambda x: m2.unlabeled_elbo(x, noise=drawn.expand(len(x), -1)), images, batch_size=200)


def scribbles(turns):
    """Return images (N, 1, 28, 28) of smooth curves that pass near `turns` random points each, as large as a digit."""
    points = torch.rand(NUM_IMAGES, 2, turns, generator=torch.Generator().manual_seed(turns))
    curves = avg_pool1d(interpolate(points, NUM_POINTS, mode="linear"), NUM_POINTS // turns, 1)
    curves = curves - curves.amin(2, keepdim=True)
    curves = 2 * INK_RADIUS * curves / curves.amax((1, 2), keepdim=True)
    curves = curves - curves.mean(2, keepdim=True) + 13.5  # centred by mass, as digits are
    pixels = torch.cartesian_prod(torch.arange(28.0), torch.arange(28.0))
    distance = torch.cdist(pixels.expand(NUM_IMAGES, -1, -1), curves.mT).amin(2)
    return (PEN - distance).clamp(0, 1).view(-1, 1, 28, 28)


def kinds(mnist, fashion):
    """Return images (N, 1, 28, 28) of each kind, from digits to what is least like one, of two `DataSet`s."""
    test = mnist.test_images[:: len(mnist.test_images) // NUM_IMAGES]
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    return {
        "test images of digits: false alarms": test,
        "scribbles, simple": scribbles(5),
        "scribbles, tangled": scribbles(12),
        "digits on their side": test.rot90(1, (2, 3)),
        "digits 5 pixels to the right": test.roll(5, 3),
        "clothes of Fashion-MNIST": fashion.test_images[:: len(fashion.test_images) // NUM_IMAGES],
        "digits with their pixels shuffled": test.flatten(1)[:, order].view_as(test),
        "digits, black and white swapped": 1 - test,
    }


def threshold(m2, mnist):
    """Return the bound in nats that FALSE_ALARMS of the validation images fall below, to one decimal."""
    return round(bounds(m2, mnist.valid_images).quantile(FALSE_ALARMS).item(), 1)
