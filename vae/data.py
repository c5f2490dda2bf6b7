"""A data set of any size, shape and number of classes; its labeled subsets; batches; pixels as a density needs them."""

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch

from vae.distributions import check_pixels

PARTS = ("train", "valid", "test")
UNKNOWN = -1  # the label of a training image that never had one


def check_labels(y, num_rows, num_classes=float("inf"), lowest=0):
    """Raise ValueError, with what to do, unless y (N,) is torch.long, in 0…K − 1, or from `lowest` on."""
    right = f"labels must be whole numbers in 0…{num_classes - 1}, one for each of {num_rows} rows"
    if not torch.is_tensor(y) or y.dtype != torch.long:
        found = f"{type(y).__name__} of {y.dtype}" if hasattr(y, "dtype") else type(y).__name__
        raise ValueError(f"{right}, as of torch.as_tensor(y).long(), not {found}")
    if y.shape != (num_rows,):
        raise ValueError(f"{right}, not {tuple(y.shape)}: y.squeeze(1) of a column, y.argmax(1) of one-hot rows")
    if not ((y >= lowest) & (y < num_classes)).all():
        raise ValueError(f"{right}, not {y.min()}…{y.max()}; rows without a label, −1, belong to the unlabeled ones")


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
        for part in PARTS:
            try:
                self._check(*self.part(part), UNKNOWN if part == "train" else 0)
            except ValueError as error:
                raise ValueError(f"{self.name}, {part} images: {error}") from error

    def _check(self, images, labels, lowest):
        if images.dtype != torch.float32 or images.shape[1:] != self.x_shape:
            found = f"{images.dtype} {tuple(images.shape[1:])}"
            raise ValueError(f"they must be torch.float32 {self.x_shape}, not {found}; 8-bit ones divided by 255")
        check_pixels(images)
        check_labels(labels, len(images), self.num_classes, lowest)

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
        for name, value in vars(self).items():
            object.__setattr__(moved, name, value.to(device) if torch.is_tensor(value) else value)
        return moved


def labeled_split(labels, num_labeled, generator, num_classes):
    """Return the indices of a random subset of `num_labeled` images that keep their label, and those of all the others.

    Every class keeps as many, or one more; where some class has too few, each keeps its share of `labels`, at least
    one. Images without a label (−1) are among the others. Raises ValueError for a class without images, and for counts
    below one per class or above what there is.
    """
    check_labels(labels, len(labels), num_classes, UNKNOWN)
    known = labels[labels != UNKNOWN]
    counts = torch.bincount(known, minlength=num_classes)
    if not counts.all():
        raise ValueError(f"no image has the label {(counts == 0).nonzero().flatten().tolist()}; every class needs one")
    if not num_classes <= num_labeled <= len(known):
        raise ValueError(
            f"num_labeled = {num_labeled} must be at least one for each of {num_classes} classes, "
            f"and at most the {len(known)} images that have a label"
        )
    order = torch.randperm(len(labels), generator=generator, device=labels.device)
    members = [order[labels[order] == k] for k in range(num_classes)]
    kept = _class_sizes(counts, num_labeled)
    labeled = torch.cat([m[:n] for m, n in zip(members, kept, strict=True)])
    unlabeled = torch.cat([m[n:] for m, n in zip(members, kept, strict=True)])
    return labeled, torch.cat([unlabeled, order[labels[order] == UNKNOWN]])


def _class_sizes(counts, total):
    """Return how many of `total` labels each class keeps, of the `counts` (K,) that there are, in a list."""
    num_classes = len(counts)
    even = [total // num_classes + (k < total % num_classes) for k in range(num_classes)]
    if all(n <= count for n, count in zip(even, counts.tolist(), strict=True)):
        return even
    shares = total * counts.cpu().double() / counts.sum().item()
    sizes = shares.floor().clamp(min=1)
    while sizes.sum() != total:  # the class that is furthest from its share gives or takes one
        if sizes.sum() < total:
            sizes[(shares - sizes).argmax()] += 1
        else:
            sizes[(sizes - shares).where(sizes > 1, -torch.inf).argmax()] -= 1
    return sizes.long().tolist()


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


def as_is(rows, generator):
    """Return `rows`: the transform of batches that need none."""
    return rows


def _shuffled_rows(num_rows, batch_size, generator):
    """Yield one permutation's batches of row indices, all of the same size: a remainder waits for the next epoch."""
    order = torch.randperm(num_rows, generator=generator, device=generator.device)
    yield from order[: num_rows - num_rows % batch_size].split(batch_size)


def _check_batch_size(batch_size, num_rows, name):
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"{name} = {batch_size} must lie between 1 and the {num_rows} rows to draw from")


class Batches:
    """Shuffled batches (B, …) of `rows` (N, …); every iteration is one epoch. `transform` may be `binarize`."""

    def __init__(self, rows, batch_size, generator, transform=as_is):
        _check_batch_size(batch_size, len(rows), "batch_size")
        self.rows, self.num_rows = torch.as_tensor(rows), len(rows)
        self.batch_size, self.generator, self.transform = batch_size, generator, transform
        self.tensors = {"rows": self.rows}

    def __len__(self):
        return len(self.rows) // self.batch_size

    def __iter__(self):
        for index in _shuffled_rows(len(self.rows), self.batch_size, self.generator):
            yield self.transform(self.rows.index_select(0, index), self.generator)


class SemiSupervisedBatches:
    """Batches (x, y, x_unlabeled) that always hold both kinds, each passed through `transform` anew.

    Every iteration is one epoch of the unlabeled rows; the labeled ones are gone through in permutations of their own,
    as often as that takes. `num_labeled` and `num_unlabeled` are how many rows there are of each kind. Raises
    ValueError where most rows are labeled and an epoch would show less than half of these.
    """

    def __init__(
        self, labeled_rows, labels, unlabeled_rows, labeled_batch_size, unlabeled_batch_size, generator, transform=as_is
    ):
        check_labels(labels, len(labeled_rows))
        if not len(unlabeled_rows):
            raise ValueError("no unlabeled rows: if all have a label, give the labeled rows as unlabeled_rows, too")
        _check_batch_size(labeled_batch_size, len(labeled_rows), "labeled_batch_size")
        _check_batch_size(unlabeled_batch_size, len(unlabeled_rows), "unlabeled_batch_size")
        self.labeled_rows, self.labels, self.unlabeled_rows = labeled_rows, labels, unlabeled_rows
        self.labeled_batch_size, self.unlabeled_batch_size = labeled_batch_size, unlabeled_batch_size
        self.num_labeled, self.num_unlabeled = len(labeled_rows), len(unlabeled_rows)
        self.num_rows = self.num_labeled + self.num_unlabeled
        self.generator, self.transform = generator, transform
        self.tensors = {"labeled rows": labeled_rows, "labels": labels, "unlabeled rows": unlabeled_rows}
        shown = len(self) * labeled_batch_size
        if self.num_unlabeled < self.num_labeled > 2 * shown:
            found = f"an epoch shows {shown} of {self.num_labeled} labels"
            raise ValueError(f"{found}; take a smaller unlabeled_batch_size or a larger labeled_batch_size")

    def __len__(self):
        return self.num_unlabeled // self.unlabeled_batch_size

    def _labeled_rows(self):
        while True:
            yield from _shuffled_rows(self.num_labeled, self.labeled_batch_size, self.generator)

    def __iter__(self):
        unlabeled_rows = _shuffled_rows(self.num_unlabeled, self.unlabeled_batch_size, self.generator)
        for labeled, unlabeled in zip(self._labeled_rows(), unlabeled_rows, strict=False):
            x = self.transform(self.labeled_rows[labeled], self.generator)
            yield x, self.labels[labeled], self.transform(self.unlabeled_rows[unlabeled], self.generator)
