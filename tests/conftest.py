"""Every test is seeded, opens no window and finds no network; MNIST has small stand-ins."""

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

from experiments.data import LOADERS, embedded_mnist, load_data
from vae import datasets
from vae.data import DataSet

matplotlib.use("Agg")
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("repeatable")


def pytest_runtest_setup(item):
    if item.get_closest_marker("dask"):
        pytest.importorskip("distributed", reason="needs Dask: pip install -e '.[cluster]'")


@pytest.fixture(autouse=True)
def isolated():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    plt.close("all")
    torch.set_num_threads(threads)


@pytest.fixture
def default_dtype():
    """The function that sets it, for this test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def embedded():
    return embedded_mnist()


@pytest.fixture(scope="session")
def stripes():
    """Gray images (1, 4, 6) of class i % 3, which two bright columns show; one of seven shows the next class."""
    parts, generator = [], torch.Generator().manual_seed(0)
    for size in (240, 60, 90):
        number = torch.arange(size)
        bright = ((number + (number % 7 == 0)) % 3 == torch.arange(6)[:, None] // 2).T  # (N, 6)
        images = 0.1 + 0.3 * torch.rand(size, 1, 4, 6, generator=generator) + 0.5 * bright[:, None, None]
        parts += [images, number % 3]
    return DataSet("stripes", 3, *parts)


@pytest.fixture
def add_data(monkeypatch):
    """A function that makes a data set known to jobs by its name."""

    def add(data):
        monkeypatch.setitem(LOADERS, data.name, lambda: data)
        load_data.cache_clear()

    yield add
    load_data.cache_clear()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty working folder, no settings and no network. Returns the list of downloads that were tried."""
    downloads = []

    def refuse(root, download):
        downloads.append(Path(root))
        raise RuntimeError("no network")

    for name in ("MNIST", "FashionMNIST"):
        monkeypatch.setattr(f"torchvision.datasets.{name}", refuse)
    for name in ("VAE_DATA", "VAE_SMOKE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return downloads


@pytest.fixture
def write_mnist(monkeypatch):
    """A function that writes small files in MNIST's format, image i spelling i in its first two pixels, label i % 7.

    It returns their folder, and `load_mnist` accepts them from then on; with folder="FashionMNIST", its loader.
    """

    def write(root, num_train=6, num_test=3, gzipped=(), folder="MNIST"):
        raw, md5 = root / folder / "raw", {}
        raw.mkdir(parents=True)
        for part, num in (("train", num_train), ("t10k", num_test)):
            pixels, labels = np.zeros((num, 784), np.uint8), np.arange(num) % 7
            pixels[:, 0], pixels[:, 1] = np.divmod(np.arange(num), 256)
            contents = {"images-idx3": struct.pack(">4I", 0x803, num, 28, 28) + pixels.tobytes()}
            contents["labels-idx1"] = struct.pack(">2I", 0x801, num) + labels.astype(np.uint8).tobytes()
            for name, content in ((f"{part}-{kind}-ubyte", content) for kind, content in contents.items()):
                md5[name] = hashlib.md5(content).hexdigest()
                path = raw / (f"{name}.gz" if name in gzipped else name)
                path.write_bytes(gzip.compress(content, 1) if name in gzipped else content)
        monkeypatch.setattr(datasets, {"MNIST": "MNIST_MD5", "FashionMNIST": "FASHION_MNIST_MD5"}[folder], md5)
        return raw

    return write
