"""The data of `experiments.own`: tables and images of whose rows few get a label.

Digits, breast cancer and wine are scikit-learn's. Images are 5,000 of MNIST, which need no download, and 12,000 of
MNIST and of Fashion-MNIST; with one number of labels a class, that of `WHOLE`, all 60,000. Of four made ones the answer
is known:

(a) `clusters-are-classes`: Gaussian clusters, one a class, of 50 to 10 % of the rows, among irrelevant wide columns.
(b) `clusters-cut-across`: one hyperplane through the centers of four clusters parts two classes. Nothing in the density
    shows it; the clusters tempt M2.
(c) `one-blob`: correlated columns of one Gaussian, classes by thresholds of a linear score, irrelevant wide columns.
(d) `make-classification`: scikit-learn's, five unbalanced classes of several clusters each.

A quarter of the rows is held out as test rows: of the 12,000 or 60,000 images a sixth, of the 5,000 a fifth. Labels
are drawn class by class; where a class has few training rows, as in wine, at most half of them get one.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from experiments.data import LOADERS, embedded_mnist, load_data
from vae.data import NO_LABEL

LABELS_PER_CLASS = (3, 10, 30)
NUM_ROWS = 3000  # of (a), (b) and (c)
SPLITS = range(6, 19)  # settings were chosen on others
AFTER_THE_RULE = 16  # the first draw made after the guard's rule was settled


@dataclass(frozen=True)
class Own:
    """A cell; the most rows of its data, test rows too; and `M2Classifier`'s updates, None for its default."""

    data: str
    labels_per_class: int
    split: int = 0
    max_rows: int = 12_000
    updates: int | None = None

    def smoke(self):
        """Return the cell with few rows and updates."""
        return replace(self, max_rows=600, updates=40)


def digits():
    """Return scikit-learn's digits as a table of pixels in [0, 1]."""
    x, y = datasets.load_digits(return_X_y=True)
    return x / 16, y


def images(data, *parts):
    """Return images (N, H, W) and labels of these parts of a `DataSet`."""
    x, y = (torch.cat(of_parts).numpy() for of_parts in zip(*map(data.part, parts), strict=True))
    return x[:, 0], y


def gaussians(random, centers, num_rows, weights):
    """Return rows of Normals about `centers` (K, D), and the number of each one's, drawn with `weights` (K,)."""
    number = random.choice(len(centers), num_rows, p=weights)
    return centers[number] + random.standard_normal((num_rows, centers.shape[1])), number


def with_wide_columns(random, x):
    """Return rows with five irrelevant columns more, of ten times the scale."""
    return np.hstack([x, 10 * x.std() * random.standard_normal((len(x), 5))])


def clusters_are_classes(split):
    """(a): four classes in eight columns."""
    random = np.random.RandomState(split)
    x, y = gaussians(random, 2.5 * random.standard_normal((4, 8)), NUM_ROWS, (0.5, 0.25, 0.15, 0.1))
    return with_wide_columns(random, x), y


def clusters_cut_across(split):
    """(b): two classes in eight columns."""
    random = np.random.RandomState(split)
    normal, centers = random.standard_normal(8), 3 * random.standard_normal((4, 8))
    centers -= np.outer(centers @ normal, normal) / (normal @ normal)  # so that the hyperplane goes through them
    x, _ = gaussians(random, centers, NUM_ROWS, (0.4, 0.3, 0.2, 0.1))
    return x, (x @ normal > 0).astype(int)


def one_blob(split):
    """(c): three classes, 60, 30 and 10 % of the rows, in ten columns."""
    random = np.random.RandomState(split)
    x = random.standard_normal((NUM_ROWS, 10)) @ random.standard_normal((10, 10))
    score = (x / x.std(0)) @ random.standard_normal(10)
    return with_wide_columns(random, x), np.searchsorted(np.quantile(score, (0.6, 0.9)), score)


def make_classification(split):
    """(d): five classes in thirty columns."""
    sizes = {"n_samples": 6000, "n_features": 30, "n_informative": 15, "n_redundant": 5, "n_classes": 5}
    options = {"weights": [0.4, 0.25, 0.15, 0.12, 0.08], "class_sep": 1.5, "flip_y": 0.01}
    return datasets.make_classification(**sizes, **options, random_state=np.random.RandomState(split))


WHOLE_SUFFIX = "-60000"  # of all images but the data set's own test images
DATA = {  # functions of the split
    "digits": lambda split: digits(),
    "breast-cancer": lambda split: datasets.load_breast_cancer(return_X_y=True),
    "wine": lambda split: datasets.load_wine(return_X_y=True),
    "embedded-mnist": lambda split: images(embedded_mnist(), "train", "valid", "test"),
    **{name: lambda split, name=name: images(load_data(name), "train") for name in LOADERS},
    **{f"{name}{WHOLE_SUFFIX}": lambda split, name=name: images(load_data(name), "train", "valid") for name in LOADERS},
    "clusters-are-classes": clusters_are_classes,
    "clusters-cut-across": clusters_cut_across,
    "one-blob": one_blob,
    "make-classification": make_classification,
}
WHOLE = {"mnist-60000": 10, "fashion-mnist-60000": 100}  # labels a class
CELLS = tuple((name, count) for name in DATA for count in ([WHOLE[name]] if name in WHOLE else LABELS_PER_CLASS))
TEST_SHARE = dict.fromkeys([*LOADERS, *WHOLE], 1 / 6) | {"embedded-mnist": 1 / 5}


def source(name):
    """Return the name of the data set, of `experiments.data` if it is one of its images, that the rows come from."""
    return name.removesuffix(WHOLE_SUFFIX)


def cell_of(data, labels_per_class, split):
    """Return the cell of a data set, of as many rows as it has here."""
    return Own(data, labels_per_class, split, max_rows=60_000 if data in WHOLE else 12_000)


def few_labels(y, per_class, split):
    """Return y (N,) with −1 for all but `per_class` rows of each class, or half of a class's rows if that is less."""
    random, few = np.random.RandomState(split), np.full_like(y, NO_LABEL)
    for k in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == k))
        few[rows[: min(per_class, len(rows) // 2)]] = k
    return few


def draw(config):
    """Return training rows, test rows, the labels of both, and of the training rows those that are given."""
    x, y = DATA[config.data](config.split)
    rows = np.random.RandomState(config.split).permutation(len(x))[: config.max_rows]
    share, seed = TEST_SHARE.get(config.data, 1 / 4), config.split
    x, x_test, y, y_test = train_test_split(x[rows], y[rows], test_size=share, stratify=y[rows], random_state=seed)
    return x, x_test, y, y_test, few_labels(y, config.labels_per_class, config.split)
