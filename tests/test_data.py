"""Data sets, where they are sought, labeled subsets, batches."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch.testing import assert_close

from experiments.data import LOADERS
from vae import datasets
from vae.data import NO_LABEL, PARTS, Batches, SemiSupervisedBatches, add_noise, binarize, dequantize, hide_labels
from vae.datasets import DataNotFoundError, load_mnist, two_gaussians


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("part", PARTS)
def test_a_data_set_refuses_what_no_model_can_use_and_says_which_part(stripes, part):
    x, y = stripes.part(part)
    wrong = [
        (x.double(), y, "must be .*float32"),
        ((255 * x).byte(), y, "must be .*float32.* divided by 255"),
        (255 * x, y, "divide 8-bit images by 255"),
        (x.masked_fill(x == x.max(), torch.nan), y, r"in \[0, 1\]"),
        (x, y[1:], f"one for each of {len(x)} rows"),
        (x, y + 1, "labels must be whole numbers in 0…2.* not 1…3"),
        (x, y - 2, "labels must be whole numbers in 0…2.* not -2…0"),
    ]
    if part != "train":  # which sets the shape, and where −1 stands for a label that is not known
        wrong += [
            (x.flatten(1), y, r"must be .*float32 \(1, 4, 6\), not .*24"),
            (x, y - 1, "only training rows may have −1"),
        ]
    for images, labels, complaint in wrong:
        with pytest.raises(ValueError, match=f"stripes, {part} images: .*{complaint}"):
            replace(stripes, **{f"{part}_images": images, f"{part}_labels": labels})
    assert replace(stripes, train_labels=stripes.train_labels - 1).x_shape == (1, 4, 6)


def test_the_checksum_changes_with_any_pixel_or_label_and_with_the_shape_and_to_moves_all(stripes):
    parts = {f"{part}_{kind}": stripes.part(part)[k] for part in PARTS for k, kind in enumerate(("images", "labels"))}
    same, changed = {name: value.clone() for name, value in parts.items()}, []
    for name, value in parts.items():
        value = value.clone()
        value.view(-1)[-1] -= 2**-20 if "images" in name else 1
        changed.append(replace(stripes, **{name: value}))
    for shape in ((24,), (1, 6, 4)):
        changed.append(replace(stripes, **{k: v.view(-1, *shape) for k, v in parts.items() if "images" in k}))
    assert replace(stripes, **same).checksum == stripes.checksum
    assert len({stripes.checksum, *(data.checksum for data in changed)}) == 1 + len(changed)
    moved = stripes.to("meta")
    assert {value.device.type for value in vars(moved).values() if torch.is_tensor(value)} == {"meta"}


def test_binarized_pixels_have_their_intensity_as_mean(monkeypatch):
    intensities = torch.linspace(0, 1, 11)
    draws = binarize(intensities.expand(20_000, 11), seeded())
    assert set(draws.unique().tolist()) == {0, 1}
    assert ((draws.mean(0) - intensities).abs() <= 5 * (intensities * (1 - intensities) / 20_000).sqrt()).all()
    for draw in (0.0, 1 - 2**-24):  # the least and the largest that torch.rand gives
        monkeypatch.setattr(torch, "rand", lambda shape, draw=draw, **_: torch.full(shape, draw))
        assert binarize(torch.tensor([0.0, 1.0]), seeded()).tolist() == [0, 1]


def test_dequantized_pixels_fill_the_256th_of_their_gray_level_evenly():
    levels = torch.arange(256) / 255
    values = dequantize(levels.expand(2000, 256), seeded())
    within = 256 * values - torch.arange(256)
    assert 0 <= values.min() <= values.max() <= 1
    assert -1e-4 < within.min() < 0.01 < 0.99 < within.max() < 1 + 1e-4
    assert_close(within.mean(0), torch.full((256,), 0.5), atol=5 / (12 * 2000) ** 0.5, rtol=0)


def test_noise_is_normal_of_half_a_standard_deviation_and_another_each_time():
    rows, generator = torch.tensor([-3.0, 0.0, 1e3]).double(), seeded()
    draws = torch.stack([add_noise(rows, generator) for _ in range(20_000)])
    assert draws.dtype == torch.float64
    torch.testing.assert_close(draws.mean(0), rows, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(0), torch.full((3,), 0.5).double(), rtol=0.03, atol=0)


@pytest.mark.parametrize("transform", [binarize, dequantize])
def test_pixels_are_drawn_anew_from_the_generator_alone_in_their_precision(transform, default_dtype):
    gray, generator = torch.rand(100), seeded()
    drawn = transform(gray, generator)
    assert not torch.equal(drawn, transform(gray, generator))
    default_dtype(torch.float64)  # which changes nothing
    assert_close(transform(gray, seeded()), drawn, rtol=0, atol=0)
    assert transform(gray.double(), seeded()).dtype == torch.float64
    assert transform(gray.round().byte(), seeded()).dtype == torch.float32


@settings(max_examples=100)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(0, 20), st.data())
def test_as_many_labels_of_every_class_are_kept_as_there_can_be(counts, unknown, data):
    """Equally many, to within one, but for classes that have fewer and keep all; all others are hidden."""
    num_labeled = data.draw(st.integers(len(counts), sum(counts)))
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = torch.cat([y, torch.full((unknown,), NO_LABEL)])[torch.randperm(len(y) + unknown)]
    left, again = (hide_labels(y, num_labeled, seeded()) for _ in range(2))
    known = left != NO_LABEL
    assert torch.equal(left, again)
    assert known.sum() == num_labeled and torch.equal(left[known], y[known])
    kept = torch.bincount(left[known], minlength=len(counts)).tolist()
    assert all(n >= max(kept) - 1 or n == count for n, count in zip(kept, counts, strict=True))


@pytest.mark.parametrize(("num_rows", "size"), [(12, 4), (12, 12), (14, 4), (3, 1)])
def test_an_epoch_visits_rows_at_most_once_in_equal_batches_shuffled_anew_by_the_seed(num_rows, size):
    epochs = []
    for batches in (Batches(torch.arange(num_rows), size, seeded(s)) for s in (0, 0, 1)):
        for epoch in (list(batches) for _ in range(2)):
            assert [len(batch) for batch in epoch] == [size] * len(batches)
            epochs.append(torch.cat(epoch).tolist())
            assert len(set(epochs[-1])) == len(epochs[-1]) == num_rows - num_rows % size
    assert epochs[:2] == epochs[2:4]
    assert num_rows == 3 or len(set(map(tuple, epochs))) == 4


def semi_supervised(*sizes, num_labeled=12, **options):
    """Batches of 52 rows, each of which spells its number; the last ones have it as label."""
    number = torch.arange(52)
    y = number.where(number >= 52 - num_labeled, NO_LABEL)
    return SemiSupervisedBatches(torch.eye(52), y, *sizes, seeded(), **options)


@pytest.mark.parametrize(("known", "unknown"), [(4, 5), (12, 40), (3, 7), (1, 1), (2, 4)])
def test_every_batch_holds_rows_with_their_labels_and_rows_without(known, unknown):
    batches, labeled, unlabeled = semi_supervised(known, unknown), [], []
    for x, y, x_unlabeled in batches:
        assert (len(x), len(x_unlabeled)) == (known, unknown)
        assert torch.equal(x.argmax(1), y)
        labeled += y.tolist()
        unlabeled += x_unlabeled.argmax(1).tolist()
    assert len(labeled) == len(batches) * known
    assert np.ptp(np.bincount(labeled, minlength=52)[40:]) <= 1
    assert len(set(unlabeled)) == len(unlabeled) == 40 - 40 % unknown
    assert max(unlabeled) < 40
    assert (batches.num_labeled, batches.num_unlabeled, batches.num_rows) == (12, 40, 52)


@pytest.mark.parametrize(
    ("num_labeled", "sizes", "num_batches", "length"),
    [
        (12, (4, 5), None, 8),
        (50, (5, 1), None, 10),  # almost all: as long as the labeled rows make it
        (52, (4, 5), None, 13),  # all: there are no others
        (12, (None, 10), None, 4),  # either kind once
        (12, (np.int64(4), np.int64(5)), None, 8),
        (52, (None, 4), None, 13),  # in batches of as many
        (12, (4, 5), 3, 3),
        (52, (4, 5), 20, 20),
    ],
)
def test_an_epoch_is_as_long_as_the_larger_kind_of_rows_makes_it_or_as_is_said(num_labeled, sizes, num_batches, length):
    batches = semi_supervised(*sizes, num_labeled=num_labeled, num_batches=num_batches)
    labels, others = zip(*((y, len(x_unlabeled)) for _, y, x_unlabeled in batches), strict=True)
    assert len(labels) == len(batches) == length
    assert set(others) == {0 if num_labeled == 52 else sizes[1]}
    assert num_batches == 3 or len(torch.cat(labels).unique()) == num_labeled
    assert len(list(Batches(torch.arange(12), 5, seeded(), num_batches=length))) == length


def test_both_kinds_of_batches_pass_every_row_through_the_transform_anew_in_each_epoch():
    gray, generator = torch.full((8, 50), 0.5), seeded()
    plain = Batches(gray[:4], 4, generator, binarize)
    both = SemiSupervisedBatches(gray, torch.tensor([-1, 0] * 4), 4, 4, generator, binarize)
    drawn = [x for _ in range(2) for x in plain] + [x for _ in range(2) for batch in both for x in batch[::2]]
    assert all(set(x.unique().tolist()) == {0, 1} for x in drawn)
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == len(drawn) == 6


@pytest.mark.parametrize("size", [0, -1, 53])
def test_impossible_batches_are_refused(size):
    for make, complaint in (
        (lambda: Batches(torch.eye(40), size, seeded()), f"batch_size = {size} .*40 rows"),
        (lambda: semi_supervised(4, size), f"unlabeled_batch_size = {size} .*40 rows"),
        (lambda: semi_supervised(size, 4), f"labeled_batch_size = {size} .*12 rows"),
        (lambda: Batches(torch.eye(0), size, seeded()), "the 0 rows to draw from"),
    ):
        with pytest.raises(ValueError, match=complaint):
            make()


FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
LABELS = "t10k-labels-idx1-ubyte"


def test_two_gaussians_have_the_density_of_an_even_mixture():
    means, covariances = [[-4.0, 0.0], [2.0, 0.0]], [[[0.5, 0.5], [0.5, 0.8]], [[1.0, -0.8], [-0.8, 1.0]]]
    x = 4 * torch.randn(200, 2)
    parts = [multivariate_normal(m, c).logpdf(x.double()) for m, c in zip(means, covariances, strict=True)]
    assert_close(two_gaussians().log_prob(x), torch.from_numpy(np.logaddexp(*parts) - np.log(2)).float())


@pytest.mark.parametrize("name", LOADERS)
def test_a_data_set_is_split_as_in_the_papers(name, offline, write_mnist, tmp_path, default_dtype):
    default_dtype(torch.float64)  # which images are not of, whatever it is
    write_mnist(tmp_path, 60_000, 10_000, ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"], FOLDERS[name])
    data = LOADERS[name](tmp_path)
    for part, rows in zip(PARTS, (range(50_000), range(50_000, 60_000), range(10_000)), strict=True):
        (images, labels), expected = data.part(part), torch.tensor(rows)
        first, second = (images[:, 0, 0, :2] * 255).round().long().T
        assert (images.shape, images.dtype) == ((len(rows), 1, 28, 28), torch.float32)
        assert torch.equal(256 * first + second, expected)
        assert torch.equal(labels, expected % 7)
    assert (data.name, data.num_classes, offline) == (name, 10, [])


def test_files_are_sought_in_the_argument_then_in_vae_data_then_in_data(offline, write_mnist, tmp_path, monkeypatch):
    roots = [tmp_path / "argument", tmp_path / "setting", tmp_path / "data"]
    monkeypatch.setenv("VAE_DATA", str(roots[1]))
    for root in roots:
        write_mnist(root)
    assert len(load_mnist(roots[0]).test_images) == 3
    for root in roots:
        (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"damaged")
    for root in roots:  # the first that has the files is read, damaged or not; without them, the next
        with pytest.raises(ValueError, match=f"{root.relative_to(tmp_path)}.MNIST.raw.train-images-idx3-ubyte"):
            load_mnist(roots[0])
        (root / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    assert not offline
    with pytest.raises(DataNotFoundError, match=r"no network(?s:.*)Copy the four files(?s:.*)VAE_DATA") as caught:
        load_mnist(roots[0])
    assert [folder.parent for folder in offline] == [roots[0]]
    for needed in (*(str(root / "MNIST" / "raw") for root in roots), *datasets.MNIST_MD5):
        assert needed in str(caught.value)
    with pytest.raises(DataNotFoundError, match="typo is no folder"):
        load_mnist(tmp_path / "typo")


@pytest.mark.parametrize("name", LOADERS)
def test_missing_files_are_downloaded_whole_to_the_first_place(name, offline, write_mnist, tmp_path, monkeypatch):
    """None that was cut short is taken for MNIST."""
    source, folder = write_mnist(tmp_path / "elsewhere", folder=FOLDERS[name]), FOLDERS[name]
    (tmp_path / "argument").mkdir()
    events = ["cut short", "nothing"]

    def download(root, download):
        shutil.copytree(source, f"{root}/{folder}/raw")
        assert not (tmp_path / "argument" / folder).exists()  # not before all is whole
        if events.pop(0) == "cut short":
            raise RuntimeError("connection lost")

    monkeypatch.setattr(f"torchvision.datasets.{folder}", download)
    with pytest.raises(DataNotFoundError, match="connection lost"):
        LOADERS[name](tmp_path / "argument")
    assert len(LOADERS[name](tmp_path / "argument").test_images) == 3
    assert os.listdir(tmp_path / "argument") == [folder]


def test_a_damaged_archive_or_a_file_of_other_contents_is_named(offline, write_mnist, tmp_path):
    path = write_mnist(tmp_path, gzipped=[LABELS]) / f"{LABELS}.gz"
    whole, others = path.read_bytes(), (path.parent / "train-labels-idx1-ubyte").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4], b"", b"no archive", whole[:12] + b"\xff" * 8 + whole[20:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{LABELS}.gz is .*fetch it again"):
            load_mnist(tmp_path)
    for damaged in (others, others[:-1], b""):  # another file of MNIST, and none of them
        path.with_suffix("").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{LABELS} is not .*MD5.*{datasets.MNIST_MD5[LABELS]}.*fetch it again"):
            load_mnist(tmp_path)
    assert not offline
