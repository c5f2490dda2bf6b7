"""A data set of any size, shape and number of classes; its labeled subsets; batches; pixels as a density needs them."""

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch

from vae.distributions import check_pixels

PARTS = ("train", "valid", "test")
NO_LABEL = -1  # in place of a label: there is none, as in scikit-learn


def check_labels(y, num_rows, num_classes=None, lowest=0):
    """Raise ValueError, with what to do, unless y (N,) is torch.long, from `lowest` to K − 1, if K is known."""
    allowed = f"0…{num_classes - 1}" if num_classes else "0, 1, …"
    right = f"labels must be whole numbers in {allowed}, one for each of {num_rows} rows"
    if not torch.is_tensor(y) or y.dtype != torch.long:
        found = f"{type(y).__name__} of {y.dtype}" if hasattr(y, "dtype") else type(y).__name__
        raise ValueError(f"{right}, as of torch.as_tensor(y).long(), not {found}")
    if y.shape != (num_rows,):
        raise ValueError(f"{right}, not {tuple(y.shape)}: y.squeeze(1) of a column, y.argmax(1) of one-hot rows")
    if len(y) and (y.min() < lowest or (num_classes and y.max() >= num_classes)):
        raise ValueError(f"{right}, not {y.min()}…{y.max()}; only training rows may have −1, for none")


@dataclass(frozen=True)
class DataSet:
    """Images (N, *X), floats in [0, 1], and labels (N,): to train, to choose settings, and to report.

    X is any shape: (C, H, W) for pictures. Labels are whole numbers in 0…K − 1; a training image that never had one has
    the label −1. Raises ValueError, with the part, for what no model can use.
    """

    name: str
    num_classes: int
    train_images: torch.Tensor
    train_labels: torch.Tensor
    valid_images: torch.Tensor
    valid_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def __post_init__(self):
        needed = f"torch.float32 {self.x_shape}"
        for part in PARTS:
            images, labels = self.part(part)
            found = f"{images.dtype} {tuple(images.shape[1:])}"
            try:
                if found != needed:
                    raise ValueError(f"they must be {needed}, not {found}; 8-bit ones divided by 255")
                check_pixels(images)
                check_labels(labels, len(images), self.num_classes, NO_LABEL if part == "train" else 0)
            except ValueError as error:
                raise ValueError(f"{self.name}, {part} images: {error}") from error

    def part(self, name):
        """Return images and labels of "train", "valid" or "test"."""
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

    @property
    def x_shape(self):
        """The shape X of an image."""
        return tuple(self.train_images.shape[1:])

    @cached_property
    def checksum(self):
        """The MD5 of all images and labels, to tell this data set from others: a string."""
        digest = hashlib.md5()
        for part in PARTS:
            for tensor in self.part(part):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device):
        """Return the data set with every tensor on `device`."""
        moved = copy.copy(self)  # which checks nothing again
        vars(moved).update({name: t.to(device) for name, t in vars(self).items() if torch.is_tensor(t)})
        return moved


def hide_labels(y, num_labeled, generator):
    """Return the labels y (N,) with −1 for all but `num_labeled` of them, drawn at random.

    Every class 0…max(y) keeps the same number, or one more, but for those that have fewer: they keep all. Raises
    ValueError for a class without rows, and for counts below one per class or above what there is.
    """
    check_labels(y, len(y), lowest=NO_LABEL)
    counts = torch.bincount(y[y != NO_LABEL])
    if not counts.all():
        raise ValueError(f"no row has the label {(counts == 0).nonzero().flatten().tolist()}; every class needs one")
    if not max(1, len(counts)) <= num_labeled <= counts.sum():
        raise ValueError(
            f"num_labeled = {num_labeled} must be at least one for each of {len(counts)} classes, "
            f"and at most the {counts.sum()} rows that have a label"
        )
    sizes = torch.zeros_like(counts)
    while (missing := num_labeled - int(sizes.sum())) > 0:
        can_keep_one_more = (sizes < counts).nonzero().flatten()
        sizes[can_keep_one_more[:missing]] += 1
    order = torch.randperm(len(y), generator=generator, device=y.device)
    left = torch.full_like(y, NO_LABEL)
    for k, size in enumerate(sizes.tolist()):
        left[order[y[order] == k][:size]] = k
    return left


def _uniform(images, generator):
    """Return noise in [0, 1) for every pixel, in the precision of `images`, or float32 if that is lower."""
    check_pixels(images)
    dtype = torch.promote_types(images.dtype, torch.float32)
    return torch.rand(images.shape, generator=generator, device=images.device, dtype=dtype)


def binarize(images, generator):
    """Draw each pixel from Bernoulli(its intensity): again for every batch of training, once to evaluate."""
    return _uniform(images, generator).lt_(images)


def dequantize(images, generator):
    """Spread each of the 256 gray levels evenly over its own 1/256 of [0, 1], so that images have a density.

    Its logarithm is, on average, at most that of the levels' probability plus log 256 nats a pixel (Theis et al. 2016,
    A note on the evaluation of generative models, section 3.1). Without it a density can grow for ever.
    """
    return (255 * images + _uniform(images, generator)) / 256


def add_noise(rows, generator):
    """Add Normal(0, 0.5²) to standardized rows, another draw for every batch of training.

    Networks that learn from noisy rows are smoother (Bishop 1995, Training with noise is equivalent to Tikhonov
    regularization), and a density has no spikes.
    """
    return rows + 0.5 * torch.randn(rows.shape, generator=generator, device=rows.device, dtype=rows.dtype)


def as_is(rows, generator):
    """Return `rows`: the transform of batches that need none."""
    return rows


def _shuffled(index, batch_size, generator):
    """Yield batches of `index` (N,) for ever, in permutations whose remainders are left out; empty ones where N = 0."""
    while True:
        order = index[torch.randperm(len(index), generator=generator, device=generator.device)]
        yield from order[: len(index) - len(index) % batch_size].split(batch_size)


def _checked(batch_size, num_rows, name):
    """Return the batch size, which may be NumPy's, as an int. ValueError unless there are as many rows."""
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"{name} = {batch_size} must lie between 1 and the {num_rows} rows to draw from")
    return int(batch_size)


class Batches:
    """Shuffled batches (B, …) of `rows` (N, …), each passed through `transform`, such as `binarize`.

    An iteration, an epoch of `vae.training.fit`, goes through the rows once, or makes `num_batches`.
    """

    def __init__(self, rows, batch_size, generator, transform=as_is, num_batches=None):
        self.rows, self.num_rows = torch.as_tensor(rows), len(rows)
        self.batch_size = _checked(batch_size, len(rows), "batch_size")
        self.generator, self.transform = generator, transform
        self.num_batches = num_batches or self.num_rows // self.batch_size
        self.tensors = {"rows": self.rows}

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        every = torch.arange(self.num_rows, device=self.generator.device)
        for index in islice(_shuffled(every, self.batch_size, self.generator), self.num_batches):
            yield self.transform(self.rows.index_select(0, index), self.generator)


class SemiSupervisedBatches:
    """Batches (x, y, x_unlabeled) of rows x (N, …), labels y (N,), −1 for none; each passed through `transform` anew.

    Where no row lacks a label, x_unlabeled is empty. An iteration, an epoch of `vae.training.fit`, goes once through
    the kind of rows that there are more of, or makes `num_batches`; the other kind, in permutations of its own, as
    often as that takes. Without `labeled_batch_size` the labeled rows, where they are fewer, are gone through about
    once. `num_labeled` and `num_unlabeled` count rows.
    """

    def __init__(self, x, y, labeled_batch_size, unlabeled_batch_size, generator, transform=as_is, num_batches=None):
        check_labels(y, len(x), lowest=NO_LABEL)
        self.x, self.y, self.generator, self.transform = torch.as_tensor(x), y, generator, transform
        self.labeled, self.unlabeled = (y != NO_LABEL).nonzero()[:, 0], (y == NO_LABEL).nonzero()[:, 0]
        self.num_labeled, self.num_unlabeled, self.num_rows = len(self.labeled), len(self.unlabeled), len(y)
        more_labels = self.num_labeled > self.num_unlabeled
        self.unlabeled_batch_size, unlabeled_batches = 1, 0  # of no rows
        if self.num_unlabeled:
            self.unlabeled_batch_size = _checked(unlabeled_batch_size, self.num_unlabeled, "unlabeled_batch_size")
            unlabeled_batches = self.num_unlabeled // self.unlabeled_batch_size
        if labeled_batch_size is None and more_labels:
            labeled_batch_size = min(unlabeled_batch_size, self.num_labeled)
        elif labeled_batch_size is None:
            labeled_batch_size = max(1, self.num_labeled // unlabeled_batches)
        self.labeled_batch_size = _checked(labeled_batch_size, self.num_labeled, "labeled_batch_size")
        labeled_batches = self.num_labeled // self.labeled_batch_size
        self.num_batches = num_batches or (labeled_batches if more_labels else unlabeled_batches)
        self.tensors = {"x": self.x, "y": y}

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        labeled = _shuffled(self.labeled, self.labeled_batch_size, self.generator)
        unlabeled = islice(_shuffled(self.unlabeled, self.unlabeled_batch_size, self.generator), self.num_batches)
        for known, unknown in zip(labeled, unlabeled, strict=False):
            x, x_unlabeled = (self.transform(self.x[index], self.generator) for index in (known, unknown))
            yield x, self.y[known], x_unlabeled
