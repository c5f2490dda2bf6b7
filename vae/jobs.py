"""Jobs that each end in one small JSON file: skipped if it is there, resumed after a kill, one process at a time."""

import contextlib
import fcntl
import json
import platform
import shutil
from functools import cache
from importlib.metadata import version

import joblib
import torch

from vae.data import MNIST_MD5, embedded_mnist, load_mnist
from vae.files import atomic_path

PACKAGES = ("torch", "scikit-learn", "numpy")


@cache
def load_data(smoke):
    """Return MNIST, or for a smoke run the embedded images, read once in a process."""
    return embedded_mnist() if smoke else load_mnist()


def load_result(path, keys=()):
    """Return the result in the file at `path`. ValueError, with the path, if it holds none or lacks one of `keys`."""
    try:
        result = json.loads(path.read_text())
        missing = {"settings", *keys} - result.keys()
    except (AttributeError, ValueError) as problem:
        raise ValueError(f"{path} is not a result ({problem}); delete it and run what made it") from problem
    if missing:
        raise ValueError(f"{path} is not a result (no {missing}); delete it and run what made it")
    if result.get("name", path.stem) != path.stem:
        raise ValueError(f"{path} is the result of {result['name']}; delete it and run what made it")
    return result


def finished_result(name, settings, results):
    """Return the result of the job `name` in the folder `results`, or None if there is none with these `settings`."""
    path = results / f"{name}.json"
    result = load_result(path) if path.exists() else None
    return result if result and result["settings"] == settings else None


def write_result(result, name, results):
    """Write the result to the folder `results`, atomically."""
    with atomic_path(results / f"{name}.json") as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def run_job(name, settings, compute, results, state):
    """Return `compute(folder)`, a dict, together with what it was made of and from, and write it to `results`.

    It runs on this process's one thread. The job's own folder in `state` takes what a killed run resumes from, and a
    log, until the result is written. A second process that wants the same job waits, and finds the first one's result.
    """
    torch.set_num_threads(1)
    # What scikit-learn runs in parallel would be handed to Dask again, whose worker may wait for itself then.
    with joblib.parallel_config("sequential"), _explained_errors(name, state):
        folder, locks = state / name, state / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / name, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result = finished_result(name, settings, results)
            if result is None:
                folder.mkdir(exist_ok=True)
                with open(folder / "log", "a") as log, contextlib.redirect_stdout(log):
                    result = {"name": name} | compute(folder) | {"settings": settings, "versions": versions()}
                write_result(result, name, results)
            shutil.rmtree(folder, ignore_errors=True)
    return result


@contextlib.contextmanager
def _explained_errors(name, state):
    """Say what to do about an OSError that says only what happened."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it was raised in this package, with what to do
            raise
        raise OSError(
            f"{name} stopped, what is finished is kept ({error}); make room in {state}, or it writable, and run again"
        ) from error


def versions():
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def data_md5(mnist):
    """Return what tells this data set from others."""
    return dict(MNIST_MD5) if mnist.complete else "5,000 embedded images"
