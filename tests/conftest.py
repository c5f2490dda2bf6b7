"""Every test is seeded, opens no window and finds no network; MNIST has a small stand-in."""

import gzip
import hashlib
import struct
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import settings

matplotlib.use("Agg")
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def isolated():
    torch.manual_seed(0)
    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def embedded():
    from vae.data import embedded_mnist

    return embedded_mnist()


@pytest.fixture(scope="session")
def m1_checkpoint(embedded, tmp_path_factory):
    from vae.stages import train_m1

    path = tmp_path_factory.mktemp("m1") / "m1.pt"
    train_m1(embedded, path, smoke=True)
    return path


@pytest.fixture(scope="session")
def m1(embedded, m1_checkpoint):
    from vae.stages import train_m1

    return train_m1(embedded, m1_checkpoint, smoke=True)  # finished: loaded, not trained again


@pytest.fixture
def task(embedded, m1, tmp_path):
    """A function that returns the task of a method, with 100 labels."""

    from vae.data import labeled_split
    from vae.methods import Task, settings_of

    def make(method):
        generator = torch.Generator().manual_seed(0)
        labeled, unlabeled = labeled_split(embedded.train_labels, 100, generator)
        return Task(embedded, labeled, unlabeled, generator, m1, settings_of(method, smoke=True), tmp_path / method)

    return make


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty working folder, no settings and no network. Returns the list of downloads that were tried."""
    downloads = []

    def refuse(root, download):
        downloads.append(Path(root))
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", refuse)
    monkeypatch.delenv("VAE_DATA", raising=False)
    monkeypatch.delenv("VAE_SMOKE", raising=False)
    monkeypatch.chdir(tmp_path)
    return downloads


@pytest.fixture
def write_mnist(monkeypatch):
    """A function that writes small files in MNIST's format, image i spelling i in its first two pixels, label i % 7.

    It returns their folder, and `load_mnist` accepts them from then on.
    """

    def write(root, num_train=6, num_test=3, gzipped=()):
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True)
        md5 = {}
        for part, num in (("train", num_train), ("t10k", num_test)):
            pixels = np.zeros((num, 784), np.uint8)
            pixels[:, 0], pixels[:, 1] = np.divmod(np.arange(num), 256)
            labels = (np.arange(num) % 7).astype(np.uint8)
            images = struct.pack(">4I", 0x803, num, 28, 28) + pixels.tobytes()
            for name, content in (
                (f"{part}-images-idx3-ubyte", images),
                (f"{part}-labels-idx1-ubyte", struct.pack(">2I", 0x801, num) + labels.tobytes()),
            ):
                md5[name] = hashlib.md5(content).hexdigest()
                if name in gzipped:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
                else:
                    (folder / name).write_bytes(content)
        monkeypatch.setattr("vae.data.MNIST_MD5", md5)
        return folder

    return write
