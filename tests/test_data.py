"""The toy density, the files of MNIST and where they are sought, splits and batches."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.testing import assert_close

from vae import data
from vae.data import Batches, MNISTNotFoundError, SemiSupervisedBatches, binarize, labeled_split, load_mnist

MEANS = [[-4.0, 0.0], [2.0, 0.0]]
COVARIANCES = [[[0.5, 0.5], [0.5, 0.8]], [[1.0, -0.8], [-0.8, 1.0]]]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_two_gaussians_have_the_density_of_an_even_mixture():
    x = 4 * torch.randn(200, 2)
    parts = [multivariate_normal(m, c).logpdf(x.double()) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    exact = np.logaddexp(*parts) - np.log(2)
    assert_close(data.two_gaussians().log_prob(x), torch.from_numpy(exact).float())


def test_two_gaussians_have_the_moments_of_an_even_mixture():
    x = data.two_gaussians().sample((20_000,)).double()
    mean, half = torch.tensor([-1.0, 0.0]), 3.0  # between the means (−4, 0) and (2, 0)
    covariance = torch.tensor(COVARIANCES).mean(0) + torch.tensor([half**2, 0.0]).diag()
    products = (x - mean).unsqueeze(2) * (x - mean).unsqueeze(1)  # (N, 2, 2)
    for draws, exact in ((x, mean), (products, covariance)):
        assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 20_000**0.5).all()


def spelled(images):
    """The numbers that `write_mnist` spelled in the first two pixels."""
    pixels = (images * 255).round().long()
    return pixels[:, 0] * 256 + pixels[:, 1]


def test_mnist_is_split_as_in_the_papers(offline, write_mnist, tmp_path):
    write_mnist(tmp_path, 60_000, 10_000, gzipped=["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
    mnist = load_mnist(tmp_path)
    rows = {"train": torch.arange(50_000), "valid": torch.arange(50_000, 60_000), "test": torch.arange(10_000)}
    for part, expected in rows.items():
        images, labels = getattr(mnist, f"{part}_images"), getattr(mnist, f"{part}_labels")
        assert images.shape == (len(expected), 784)
        assert torch.equal(spelled(images), expected)
        assert torch.equal(labels, expected % 7)
    assert mnist.complete
    assert not offline


def test_mnist_moves_to_a_device_as_a_whole(offline, write_mnist, tmp_path):
    write_mnist(tmp_path)
    moved = load_mnist(tmp_path).to("meta")
    assert {v.device.type for v in vars(moved).values() if torch.is_tensor(v)} == {"meta"}
    assert moved.complete


@pytest.mark.parametrize("gzipped", [(), ["t10k-labels-idx1-ubyte"]])
def test_mnist_is_sought_in_the_argument_then_in_vae_data_then_in_data(
    offline, write_mnist, tmp_path, monkeypatch, gzipped
):
    roots = [tmp_path / "argument", tmp_path / "setting", tmp_path / "data"]
    monkeypatch.setenv("VAE_DATA", str(roots[1]))
    for root in roots:
        write_mnist(root, gzipped=gzipped)
    assert len(load_mnist(roots[0]).test_images) == 3
    for root in roots:
        (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"damaged")
    for root in roots:  # the first that has the files is read, damaged or not; without them, the next
        with pytest.raises(ValueError, match=f"{root.relative_to(tmp_path)}.MNIST.raw.train-images-idx3-ubyte"):
            load_mnist(roots[0])
        next(iter(root.glob("MNIST/raw/t10k-labels*"))).unlink()
    assert not offline
    with pytest.raises(MNISTNotFoundError) as caught:
        load_mnist(roots[0])
    assert [folder.parent for folder in offline] == [roots[0]]
    for root in roots:
        assert str(root / "MNIST" / "raw") in str(caught.value)


def test_missing_mnist_says_what_is_needed_and_what_to_do(offline, tmp_path):
    with pytest.raises(MNISTNotFoundError, match="no network") as caught:
        load_mnist()
    for needed in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        str(tmp_path / "data" / "MNIST" / "raw"),
        "Copy the four files",
        "VAE_DATA",
    ):
        assert needed in str(caught.value)


def test_missing_mnist_is_downloaded_to_the_first_place(offline, write_mnist, tmp_path, monkeypatch):
    write_mnist(tmp_path / "elsewhere")
    copy = partial(shutil.copytree, "elsewhere", dirs_exist_ok=True)
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda root, download: copy(root))
    assert len(load_mnist(tmp_path / "argument").test_images) == 3
    assert [path.name for path in (tmp_path / "argument").iterdir()] == ["MNIST"]


NAME = "t10k-labels-idx1-ubyte"


def test_truncated_archive_is_named(offline, write_mnist, tmp_path):
    path = write_mnist(tmp_path, gzipped=[NAME]) / f"{NAME}.gz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4], b"", b"no archive", whole[:12] + b"\xff" * 8 + whole[20:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{NAME}.gz is .*fetch it again"):
            load_mnist(tmp_path)
    assert not offline


def test_file_with_other_contents_is_named(offline, write_mnist, tmp_path):
    path = write_mnist(tmp_path) / NAME
    contents = path.read_bytes()
    for damaged in (contents[:-1], contents[:-1] + b"\x07", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{NAME} is not .*MD5.*{data.MNIST_MD5[NAME]}.*fetch it again"):
            load_mnist(tmp_path)
    assert not offline


def test_embedded_images_are_balanced_and_disjoint(embedded):
    parts = {"train": 400, "valid": 50, "test": 50}
    for part, per_class in parts.items():
        labels = getattr(embedded, f"{part}_labels")
        assert torch.bincount(labels).tolist() == [per_class] * 10
    images = torch.cat([getattr(embedded, f"{part}_images") for part in parts])
    assert images.shape == (5000, 784)
    assert len({row.tobytes() for row in images.numpy()}) == 5000
    assert (images.min(), images.max()) == (0, 1)
    assert not embedded.complete


def test_embedded_labels_belong_to_their_images(embedded):
    """Held-out digits are close to the mean training image of their class: chance would be 10 %."""
    means = torch.stack([embedded.train_images[embedded.train_labels == k].mean(0) for k in range(10)])
    for images, labels in (
        (embedded.valid_images, embedded.valid_labels),
        (embedded.test_images, embedded.test_labels),
    ):
        assert (torch.cdist(images, means).argmin(1) == labels).float().mean() > 0.7


def test_binarized_pixels_have_their_intensity_as_mean():
    intensities = torch.linspace(0, 1, 11)
    draws = binarize(intensities.expand(20_000, 11), seeded())
    assert set(draws.unique().tolist()) == {0, 1}
    assert ((draws.mean(0) - intensities).abs() <= 5 * (intensities * (1 - intensities) / 20_000).sqrt()).all()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])  # the least and the largest that torch.rand gives
def test_black_and_white_stay_as_they_are_whatever_is_drawn(monkeypatch, draw):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, draw))
    assert binarize(torch.tensor([0.0, 1.0]), seeded()).tolist() == [0, 1]


def test_binarize_is_seeded_and_draws_anew():
    grey, generator = torch.full((100,), 0.5), seeded()
    first, second = binarize(grey, generator), binarize(grey, generator)
    assert torch.equal(first, binarize(grey, seeded()))
    assert not torch.equal(first, second)


@pytest.fixture
def labels():
    return torch.arange(10).repeat_interleave(torch.arange(20, 30))[torch.randperm(245)]


@pytest.mark.parametrize("num_labeled", [10, 100, 200])
def test_labeled_split_is_balanced_disjoint_and_complete(labels, num_labeled):
    labeled, unlabeled = labeled_split(labels, num_labeled, seeded())
    assert torch.bincount(labels[labeled]).tolist() == [num_labeled // 10] * 10
    assert sorted([*labeled.tolist(), *unlabeled.tolist()]) == list(range(245))


def test_labeled_split_is_seeded(labels):
    first, again, other = (set(labeled_split(labels, 50, seeded(s))[0].tolist()) for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("num_labeled", "complaint"),
    [(15, "15.*multiple of 10 from 10 to 200"), (210, "210.*to 200"), (0, "0.*from 10"), (-10, "-10.*from 10")],
)
def test_labeled_split_refuses_what_cannot_be_balanced(labels, num_labeled, complaint):
    with pytest.raises(ValueError, match=complaint):
        labeled_split(labels, num_labeled, seeded())


@pytest.mark.parametrize("wrong", [10, -1])
def test_labeled_split_refuses_labels_out_of_range(labels, wrong):
    labels[3] = wrong
    with pytest.raises(ValueError, match=f"0…9.*{wrong}"):
        labeled_split(labels, 10, seeded())


@pytest.mark.parametrize(("num_rows", "batch_size"), [(12, 4), (12, 12), (14, 4), (3, 1)])
def test_an_epoch_visits_rows_at_most_once_in_equal_batches(num_rows, batch_size):
    batches = Batches(torch.arange(num_rows).unsqueeze(1), batch_size, seeded())
    epoch = list(batches)
    assert [len(batch) for batch in epoch] == [batch_size] * len(batches)
    visited = torch.cat(epoch).flatten().tolist()
    assert len(set(visited)) == len(visited) == num_rows - num_rows % batch_size


def test_epochs_are_shuffled_anew_and_seeded():
    def epochs(seed):
        batches = Batches(torch.arange(30), 10, seeded(seed))
        return [torch.cat(list(batches)).tolist() for _ in range(2)]

    first, second = epochs(0)
    assert epochs(0) == [first, second] != epochs(1)
    assert first != second
    assert sorted(first) == sorted(second) != first


def test_batches_are_binarized_anew_each_epoch():
    batches = Batches(torch.full((10, 50), 0.5), 10, seeded(), transform=binarize)
    (first,), (second,) = batches, batches
    assert set(first.unique().tolist()) == {0, 1}
    assert not torch.equal(first, second)


def semi_supervised(num_labeled, num_unlabeled, seed=0):
    """Image i is row i of the identity: white at i alone, whatever is drawn."""
    return SemiSupervisedBatches(
        torch.eye(12), torch.arange(12) % 10, torch.eye(40), num_labeled, num_unlabeled, seeded(seed)
    )


@pytest.mark.parametrize(("num_labeled", "num_unlabeled"), [(4, 5), (12, 40), (3, 7), (1, 1), (2, 4)])
def test_every_batch_holds_labelled_and_unlabelled_images(num_labeled, num_unlabeled):
    batches = semi_supervised(num_labeled, num_unlabeled)
    labeled, unlabeled = [], []
    for x, y, x_unlabeled in batches:
        assert (len(x), len(y), len(x_unlabeled)) == (num_labeled, num_labeled, num_unlabeled)
        assert torch.equal(x.argmax(1) % 10, y)
        labeled += x.argmax(1).tolist()
        unlabeled += x_unlabeled.argmax(1).tolist()
    assert len(labeled) == len(batches) * num_labeled
    assert len(set(unlabeled)) == len(unlabeled) == 40 - 40 % num_unlabeled
    visits = np.bincount(labeled, minlength=12)
    assert visits.max() - visits.min() <= 1


def test_semi_supervised_batches_are_seeded_and_binarized():
    def epoch(seed):
        grey = torch.full((4, 9), 0.5)
        return torch.cat(next(iter(SemiSupervisedBatches(grey, torch.arange(4), grey, 4, 4, seeded(seed))))[::2])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    assert set(epoch(0).unique().tolist()) == {0, 1}


@pytest.mark.parametrize("size", [0, -1, 41])
def test_impossible_batch_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"batch_size = {size} .*40 rows"):
        Batches(torch.eye(40), size, seeded())
    with pytest.raises(ValueError, match=f"num_unlabeled = {size} .*40 rows"):
        semi_supervised(4, size)
    with pytest.raises(ValueError, match=f"num_labeled = {size} .*12 rows"):
        semi_supervised(size, 4)


def test_images_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match="12 labelled rows have 11 labels"):
        SemiSupervisedBatches(torch.eye(12), torch.zeros(11), torch.eye(40), 4, 4, seeded())
