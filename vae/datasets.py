"""The data sets at hand: a mixture of two 2-D Gaussians with its exact density, MNIST, and Fashion-MNIST."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vae.data import DataSet

# MD5 of the uncompressed files, in torchvision's layout ROOT/MNIST/raw/NAME or NAME.gz, or ROOT/FashionMNIST/raw/….
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def two_gaussians():
    """Return the toy density, an even mixture of two 2-D Gaussians: `sample((5000,))` is data, `log_prob` is exact."""
    means = torch.tensor([[-4.0, 0.0], [2.0, 0.0]])
    covariances = torch.tensor([[[0.5, 0.5], [0.5, 0.8]], [[1.0, -0.8], [-0.8, 1.0]]])
    return MixtureSameFamily(Categorical(torch.ones(2)), MultivariateNormal(means, covariances))


class DataNotFoundError(FileNotFoundError):
    """A data set is in none of the places searched and could not be downloaded."""


def load_mnist(root=None):
    """Return MNIST, images of shape (1, 28, 28): 50,000 to train, 10,000 to choose settings, 10,000 to report.

    Split as in the semi-supervised paper. Sought in `root`, $VAE_DATA and ./data; if none of these holds it,
    torchvision downloads it to the first of them that is given, whole files only: others may read or download it at the
    same time. Raises ValueError for a file with the wrong MD5, DataNotFoundError if there is nothing to read.
    """
    return _load("mnist", "MNIST", MNIST_MD5, root)


def load_fashion_mnist(root=None):
    """Return Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), ten kinds of clothes, as `load_mnist` does MNIST."""
    return _load("fashion-mnist", "FashionMNIST", FASHION_MNIST_MD5, root)


def _load(name, folder, md5, root):
    places = [Path(place) for place in (root, os.environ.get("VAE_DATA")) if place]
    for place in places:
        if not place.is_dir():
            raise DataNotFoundError(f"{place} is no folder; make it, or correct the argument or VAE_DATA that names it")
    raws = [place / folder / "raw" for place in (*places, Path("data"))]
    raw = next((raw for raw in raws if all(_archive(raw, file) for file in md5)), None) or _download(raws, md5)
    images, labels, *test = (_read_idx(_archive(raw, file), expected) for file, expected in md5.items())
    return DataSet(name, 10, images[:50_000], labels[:50_000], images[50_000:], labels[50_000:], *test)


def _archive(raw, file):
    return next((path for path in (raw / file, raw / f"{file}.gz") if path.is_file()), None)


def _download(raws, md5):
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataNotFoundError("to download a data set, pip install 'minimal-vae[data]'") from error
    raw, (folder, place) = raws[0], raws[0].parents[:2]
    try:
        with TemporaryDirectory(dir=place if place.is_dir() else Path()) as partial:
            getattr(datasets, folder.name)(partial, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for path in [_archive(Path(partial) / folder.name / "raw", file) for file in md5]:
                path.replace(raw / path.name)
        return raw
    except (RuntimeError, OSError) as error:
        places = "\n  ".join(str(place.absolute()) for place in raws)
        raise DataNotFoundError(
            f"{folder.name} is not on this machine and could not be downloaded ({error}). Needed, with or without .gz:"
            f"\n  {', '.join(md5)}\nSearched:\n  {places}\nCopy the four files to one of these folders, or set "
            f"VAE_DATA to the folder that holds {folder.name}/raw."
        ) from error


def _read_idx(path, md5):
    """Read a file of such an archive into floats (N, 1, H, W) in [0, 1], or labels (N,)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise ValueError(f"{path} is not the file of that name: its MD5 is {found}, not {md5}; fetch it again")
    dims = content[3]  # the magic number's last byte: 3 for images, 1 for labels; then so many sizes
    sizes = np.frombuffer(content, ">i4", dims, offset=4).tolist()
    values = torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dims).copy()).view(sizes)
    return values.unsqueeze(1).float() / 255 if dims == 3 else values.long()
