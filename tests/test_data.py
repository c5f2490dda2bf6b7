"""Data sets, where they are sought, labeled subsets, batches; with `pytest -m full_mnist`, MNIST itself."""

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

from vae import datasets
from vae.data import PARTS, UNKNOWN, Batches, SemiSupervisedBatches, binarize, dequantize, labeled_split
from vae.datasets import LOADERS, DataNotFoundError, load_mnist, two_gaussians
from vae.evaluation import evaluate_mean
from vae.models import VAE
from vae.networks import BernoulliDecoder, Encoder
from vae.recipes import M1Recipe, train_m1


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
        wrong += [(x.flatten(1), y, r"must be .*float32 \(1, 4, 6\), not .*24"), (x, y - 1, "rows without a label")]
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


@pytest.mark.parametrize("transform", [binarize, dequantize])
def test_pixels_keep_their_precision_whatever_is_the_default(transform, default_dtype):
    gray = torch.rand(100)
    drawn = transform(gray, seeded())
    default_dtype(torch.float64)
    assert_close(transform(gray, seeded()), drawn, rtol=0, atol=0)
    assert transform(gray.double(), seeded()).dtype == torch.float64
    assert transform(gray.round().byte(), seeded()).dtype == torch.float32
    assert datasets.embedded_mnist().test_images.dtype == torch.float32


@pytest.mark.parametrize("transform", [binarize, dequantize])
def test_pixels_are_drawn_from_the_generator_alone_and_anew_each_time(transform):
    gray, generator = torch.full((100,), 0.5), seeded()
    first = transform(gray, generator)
    assert torch.equal(first, transform(gray, seeded()))
    assert not torch.equal(first, transform(gray, generator))


@settings(max_examples=100)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=9), st.integers(0, 20), st.data())
def test_every_split_is_complete_and_keeps_labels_of_every_class(counts, unknown, data):
    """Evenly, to within one, or in proportion, to within one, at least one each; −1 is always among the others."""
    num_labeled, num_classes = data.draw(st.integers(len(counts), sum(counts))), len(counts)
    labels = torch.arange(num_classes).repeat_interleave(torch.tensor(counts))
    labels = torch.cat([labels, torch.full((unknown,), UNKNOWN)])[torch.randperm(sum(counts) + unknown)]
    (labeled, unlabeled), (again, _) = (labeled_split(labels, num_labeled, seeded(), num_classes) for _ in "12")
    assert sorted([*labeled.tolist(), *unlabeled.tolist()]) == list(range(len(labels)))
    assert len(labeled) == num_labeled
    assert torch.equal(labeled, again)
    kept = torch.bincount(labels[labeled], minlength=num_classes).tolist()  # which refuses −1
    if min(counts) >= -(-num_labeled // num_classes):
        assert max(kept) - min(kept) <= 1
    elif max(kept) - min(kept) > 1:
        shares = [num_labeled * count / sum(counts) for count in counts]
        small = sum(max(0, 1 - share) for share in shares)  # what classes with a share below one are given
        assert all(n >= 1 and -1 - small < n - share < 1 for n, share in zip(kept, shares, strict=True))


@pytest.mark.parametrize(
    ("labels", "num_labeled", "complaint"),
    [
        ([0, 1, 2], 2, "num_labeled = 2 must be at least one for each of 3"),
        ([0, 1, 2, -1], 4, "num_labeled = 4 .*at most the 3 images that have a label"),
        ([0, 1, 1], 3, r"no image has the label \[2\]"),
        ([-1, -1], 3, r"no image has the label \[0, 1, 2\]"),
        ([0, 1, 2, 3], 3, "labels must be whole numbers.* in 0…2"),
        ([0, 1, 2, -2], 3, "labels must be whole numbers.* in 0…2"),
        ([0.0, 1.0, 2.0], 3, "labels must be whole numbers.* in 0…2"),
    ],
)
def test_a_split_that_cannot_be_is_refused(labels, num_labeled, complaint):
    with pytest.raises(ValueError, match=complaint):
        labeled_split(torch.tensor(labels), num_labeled, seeded(), 3)


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


def semi_supervised(num_labeled, num_unlabeled):
    rows = torch.eye(12), torch.arange(12) % 10, torch.eye(40)
    return SemiSupervisedBatches(*rows, num_labeled, num_unlabeled, seeded())


@pytest.mark.parametrize(("num_labeled", "num_unlabeled"), [(4, 5), (12, 40), (3, 7), (1, 1), (2, 4)])
def test_every_batch_holds_labeled_and_unlabeled_rows(num_labeled, num_unlabeled):
    batches = semi_supervised(num_labeled, num_unlabeled)
    labeled, unlabeled = [], []
    for x, y, x_unlabeled in batches:
        assert (len(x), len(y), len(x_unlabeled)) == (num_labeled, num_labeled, num_unlabeled)
        assert torch.equal(x.argmax(1) % 10, y)
        labeled += x.argmax(1).tolist()
        unlabeled += x_unlabeled.argmax(1).tolist()
    assert len(labeled) == len(batches) * num_labeled
    assert len(set(unlabeled)) == len(unlabeled) == 40 - 40 % num_unlabeled
    assert np.ptp(np.bincount(labeled, minlength=12)) <= 1
    assert (batches.num_labeled, batches.num_unlabeled) == (12, 40)


def test_both_kinds_of_batches_pass_every_row_through_the_transform_anew_in_each_epoch():
    gray, generator = torch.full((4, 50), 0.5), seeded()
    plain = Batches(gray, 4, generator, binarize)
    both = SemiSupervisedBatches(gray, torch.arange(4), gray, 4, 4, generator, binarize)
    drawn = [x for _ in range(2) for x in plain] + [x for _ in range(2) for batch in both for x in batch[::2]]
    assert all(set(x.unique().tolist()) == {0, 1} for x in drawn)
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == len(drawn) == 6


@pytest.mark.parametrize("size", [0, -1, 41])
def test_impossible_batches_are_refused(size):
    for make, complaint in (
        (lambda: Batches(torch.eye(40), size, seeded()), f"batch_size = {size} .*40 rows"),
        (lambda: semi_supervised(4, size), f"unlabeled_batch_size = {size} .*40 rows"),
        (lambda: semi_supervised(size, 4), f"labeled_batch_size = {size} .*12 rows"),
        (lambda: Batches(torch.eye(0), size, seeded()), "the 0 rows to draw from"),
        (lambda: SemiSupervisedBatches(torch.eye(12), torch.arange(11), torch.eye(40), 4, 4, seeded()), "of 12 rows"),
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
    """None that was cut short is taken for MNIST, and another program may have one at the same time."""
    source, folder = write_mnist(tmp_path / "elsewhere", folder=FOLDERS[name]), FOLDERS[name]
    (tmp_path / "argument").mkdir()
    events = ["cut short", "another program", "nothing"]

    def download(root, download):
        shutil.copytree(source, f"{root}/{folder}/raw")
        assert not (tmp_path / "argument" / folder).exists()  # not before all is whole
        event = events.pop(0)
        if event == "another program":
            assert len(LOADERS[name](tmp_path / "argument").test_images) == 3
        if event == "cut short":
            os.truncate(f"{root}/{folder}/raw/train-images-idx3-ubyte", 9)
            raise RuntimeError("connection lost")

    monkeypatch.setattr(f"torchvision.datasets.{folder}", download)
    with pytest.raises(DataNotFoundError, match="connection lost"):
        LOADERS[name](tmp_path / "argument")
    assert len(LOADERS[name](tmp_path / "argument").test_images) == 3
    assert not events
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


def test_embedded_images_are_balanced_disjoint_and_have_the_labels_of_their_digits(embedded):
    """Held-out digits are close to the mean training image of their class: chance would be 10 %."""
    means = torch.stack([embedded.train_images[embedded.train_labels == k].mean(0).flatten() for k in range(10)])
    for part, per_class in zip(PARTS, (400, 50, 50), strict=True):
        images, labels = embedded.part(part)
        assert torch.bincount(labels).tolist() == [per_class] * 10
        assert (torch.cdist(images.flatten(1), means).argmin(1) == labels).float().mean() > 0.7
    images = torch.cat([embedded.part(part)[0] for part in PARTS])
    assert len({row.tobytes() for row in images.numpy()}) == 5000
    assert (images.shape, images.min(), images.max()) == ((5000, 1, 28, 28), 0, 1)


@pytest.mark.full_mnist
def test_a_small_vae_learns_mnist_in_three_epochs():
    mnist = load_mnist()
    vae = VAE(Encoder((1, 28, 28), 2, (200, 200)), BernoulliDecoder(2, (1, 28, 28), (200, 200)))
    generator = torch.Generator().manual_seed(0)
    valid = binarize(mnist.valid_images, generator)
    train_m1(vae, Batches(mnist.train_images, 200, generator, transform=binarize), M1Recipe(epochs=3))
    assert -170 < evaluate_mean(vae.elbo, valid) < -130  # nats; two latents cannot do much better however long
