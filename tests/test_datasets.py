"""The toy density, MNIST's files and where they are sought; with `pytest -m full_mnist`, MNIST itself."""

import os
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.testing import assert_close

from vae import datasets
from vae.data import PARTS, Batches, binarize
from vae.datasets import LOADERS, DataNotFoundError, load_mnist, two_gaussians
from vae.evaluation import evaluate_mean
from vae.models import VAE
from vae.networks import BernoulliDecoder, Encoder
from vae.recipes import M1Recipe, train_m1

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
LABELS = "t10k-labels-idx1-ubyte"


def test_two_gaussians_have_the_density_and_the_moments_of_an_even_mixture():
    means, covariances = [[-4.0, 0.0], [2.0, 0.0]], [[[0.5, 0.5], [0.5, 0.8]], [[1.0, -0.8], [-0.8, 1.0]]]
    x = 4 * torch.randn(200, 2)
    parts = [multivariate_normal(m, c).logpdf(x.double()) for m, c in zip(means, covariances, strict=True)]
    assert_close(two_gaussians().log_prob(x), torch.from_numpy(np.logaddexp(*parts) - np.log(2)).float())
    x = two_gaussians().sample((20_000,)).double()
    mean, half = torch.tensor([-1.0, 0.0]), 3.0  # between the means (−4, 0) and (2, 0)
    covariance = torch.tensor(covariances).mean(0) + torch.tensor([half**2, 0.0]).diag()
    products = (x - mean).unsqueeze(2) * (x - mean).unsqueeze(1)  # (N, 2, 2)
    for draws, exact in ((x, mean), (products, covariance)):
        assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("name", LOADERS)
def test_a_data_set_is_split_as_in_the_papers(name, offline, write_mnist, tmp_path):
    write_mnist(tmp_path, 60_000, 10_000, ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"], FOLDERS[name])
    data = LOADERS[name](tmp_path)
    for part, rows in zip(PARTS, (range(50_000), range(50_000, 60_000), range(10_000)), strict=True):
        (images, labels), expected = data.part(part), torch.tensor(rows)
        first, second = (images[:, 0, 0, :2] * 255).round().long().T
        assert images.shape == (len(rows), 1, 28, 28)
        assert torch.equal(256 * first + second, expected)
        assert torch.equal(labels, expected % 7)
    assert (data.name, data.num_classes, offline) == (name, 10, [])


@pytest.mark.parametrize("gzipped", [(), [LABELS]])
def test_files_are_sought_in_the_argument_then_in_vae_data_then_in_data(
    gzipped, offline, write_mnist, tmp_path, monkeypatch
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
    with pytest.raises(DataNotFoundError, match=r"no network(?s:.*)Copy the four files(?s:.*)VAE_DATA") as caught:
        load_mnist(roots[0])
    assert [folder.parent for folder in offline] == [roots[0]]
    for needed in (*(str(root / "MNIST" / "raw") for root in roots), *datasets.MNIST_MD5):
        assert needed in str(caught.value)


def test_a_place_that_is_no_folder_is_refused_and_not_made(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_DATA", str(tmp_path / "nonexistent"))
    for root in (None, tmp_path / "typo"):
        with pytest.raises(DataNotFoundError, match=f"{'typo' if root else 'nonexistent'} is no folder"):
            load_mnist(root)
    assert not any(tmp_path.iterdir()) and not offline


@pytest.mark.parametrize("name", LOADERS)
def test_missing_files_are_downloaded_whole_to_the_first_place(name, offline, write_mnist, tmp_path, monkeypatch):
    """Nothing of a download that was cut short is taken for MNIST."""
    source, folder = write_mnist(tmp_path / "elsewhere", folder=FOLDERS[name]), FOLDERS[name]
    (tmp_path / "argument").mkdir()

    def download(root, download):
        shutil.copytree(source, f"{root}/{folder}/raw")
        if cut_short:
            os.truncate(f"{root}/{folder}/raw/train-images-idx3-ubyte", 9)
            raise RuntimeError("connection lost")

    monkeypatch.setattr(f"torchvision.datasets.{folder}", download)
    cut_short = True
    with pytest.raises(DataNotFoundError, match="connection lost"):
        LOADERS[name](tmp_path / "argument")
    cut_short = False
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
def test_the_files_hold_the_mnist_that_everyone_knows_and_a_small_vae_learns_it_in_three_epochs():
    mnist = load_mnist()
    assert [len(mnist.part(part)[0]) for part in PARTS] == [50_000, 10_000, 10_000]
    labels, images = (torch.cat([mnist.part(part)[k] for part in ("train", "valid")]) for k in (1, 0))
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels[0] == 7
    assert images.mean().item() == pytest.approx(0.1307, abs=5e-5)  # the constant of every normalization
    vae = VAE(Encoder((1, 28, 28), 2, (200, 200)), BernoulliDecoder(2, (1, 28, 28), (200, 200)))
    generator = torch.Generator().manual_seed(0)
    valid = binarize(mnist.valid_images, generator)
    train_m1(vae, Batches(mnist.train_images, 200, generator, transform=binarize), M1Recipe(epochs=3))
    assert -170 < evaluate_mean(vae.elbo, valid) < -130  # nats; two latents cannot do much better however long
