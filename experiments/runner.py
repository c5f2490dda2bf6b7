"""Jobs that each end in one small JSON file: skipped if it is there, resumed after a kill, one process at a time."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from timeit import repeat

import joblib
import torch

from experiments import SMOKE, UserError
from vae.checkpoint import atomic_path, plain_values

ROOT = Path("preview/smoke" if SMOKE else ".").absolute()
RESULTS, STATE = ROOT / "results", ROOT / "checkpoints"  # what is kept; what a killed run resumes from, and models
PACKAGES = ("torch", "scikit-learn", "numpy")
MODEL = "model.safetensors"  # what is left in a job's own folder
TOLD = ("diverged", "valid_error", "test_error", "test_elbo", "test_log_likelihood", "cpu_minutes")  # while jobs run


@dataclass(frozen=True)
class Job:
    """Settings, a frozen dataclass; where the result goes, below results/; and what makes it.

    `compute(folder)` returns the result, a dict, and the trained model or None; `folder` is for what it resumes from.
    """

    path: str
    config: object
    compute: Callable


def plain(config):
    """Return a dataclass as JSON keeps it."""
    return plain_values(asdict(config))


def digest(config):
    """Return a few letters that tell these settings from others."""
    return hashlib.md5(json.dumps(asdict(config)).encode()).hexdigest()[:8]


def with_recipe(config, **changes):
    """Return a configuration that is trained by the same recipe but for `changes`."""
    return replace(config, recipe=replace(config.recipe, **changes))


def shortened(recipe, epochs=1):
    """Return the recipe with at most so many epochs of each stage, for a smoke run."""
    counts = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name.endswith("epochs")}
    return replace(recipe, **{name: min(count, epochs) for name, count in counts.items()})


@cache
def has_bf16():
    """Return whether this processor computes in bfloat16, measured: an imitation takes many times as long."""
    ones = torch.ones(500, 500)  # no random numbers: they would shift all draws that follow, once in a process
    rounded = ones.bfloat16()
    return min(repeat(lambda: rounded @ rounded, number=1)) < min(repeat(lambda: ones @ ones, number=1))


def on_this_machine(recipe):
    """Return the recipe, in float32 if it asks for bfloat16 and the processor lacks it."""
    return replace(recipe, bf16=recipe.bf16 and has_bf16())


def load_result(path):
    """Return the result in the file at `path`. UserError, with the path, if it holds none, or that of another job."""
    try:
        result = json.loads(path.read_text())
        if not {"name", "settings", "cpu_minutes"} <= result.keys() or result["name"] != path.stem:
            raise ValueError("it is that of another job, or incomplete")
    except (AttributeError, ValueError) as problem:
        raise UserError(f"{path} is not the result of {path.stem} ({problem}); delete it and run again") from problem
    return result


def finished_result(job, results):
    """Return the result of `job` in the folder `results`, or None if there is none with its settings."""
    path = results / f"{job.path}.json"
    result = load_result(path) if path.exists() else None
    return result if result and result["settings"] == plain(job.config) else None


def write_result(result, path):
    """Write the result to `path`, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def write_figure(figure, path):
    """Write a Matplotlib figure to `path` as a PNG, atomically; the same figure gives the same bytes."""
    with atomic_path(path) as partial:
        tight = {"bbox_inches": "tight", "pad_inches": 0.05}
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None}, **tight)


def run_job(job, results, state):
    """Write the result of `job` to the folder `results`, with what it was made of, and return its path and itself.

    Its own folder in `state` takes what a killed run resumes from; at the end, its model and its log stay. A second
    process that wants the same job waits, and finds the first one's result. All is computed on one thread.
    """
    torch.set_num_threads(1)
    folder, locks = state / job.path, state / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    locks.mkdir(exist_ok=True)
    # What scikit-learn runs in parallel runs in order: Dask might wait for itself.
    with joblib.parallel_config("sequential"), open(locks / job.path.replace("/", "-"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = finished_result(job, results)
        if result is None:
            with open(folder / "log", "a") as log, contextlib.redirect_stdout(log):
                computed, model = job.compute(folder)
            if model is not None:
                model.save(folder / MODEL, settings=plain(job.config), curve=computed.get("curve"))
            result = {"name": Path(job.path).name} | computed | {"settings": plain(job.config), "versions": versions()}
            write_result(result, results / f"{job.path}.json")
        for path in folder.rglob("*.pt"):
            path.unlink()
    return job.path, result


def versions():
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def machine():
    """Return what speed depends on: processor, its cores, graphics processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpu": gpu}


def missing_jobs(jobs, results):
    """Return those `jobs` that have no result of their settings in the folder `results` yet."""
    return [job for job in jobs if finished_result(job, results) is None]


def run_jobs(jobs, parallel, results, state):
    """Run the `jobs` that have no result in the folder `results` yet, through `parallel`."""
    missing = missing_jobs(jobs, results)
    print(f"{len(jobs) - len(missing)} of {len(jobs)} results are there, {len(missing)} to go", flush=True)
    start, finished = time.monotonic(), parallel(joblib.delayed(run_job)(job, results, state) for job in missing)
    for done, (path, result) in enumerate(finished, start=1):
        write_result(result, results / f"{path}.json")  # here, too: a worker may have another disk
        left = (time.monotonic() - start) / 60 / done * (len(missing) - done)
        told = ", ".join(f"{key} {result[key]:.2f}" for key in TOLD if isinstance(result.get(key), float))
        print(f"[{done}/{len(missing)}] {path}: {result.get('diverged') or told}; {left:.0f} minutes left", flush=True)


@contextlib.contextmanager
def workers(jobs, scheduler=None):
    """Yield joblib's Parallel over so many processes of one thread each, or over a Dask scheduler's workers.

    Raises an error, before anything is trained, where no scheduler answers or its workers do not suit.
    """
    client = contextlib.nullcontext()
    backend = {"backend": "loky", "n_jobs": jobs or joblib.cpu_count(), "inner_max_num_threads": 1}
    if scheduler is not None:
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise UserError("Dask is not installed: pip install -e '.[cluster]'") from error

        client = Client(scheduler, timeout=20)
        backend = {"backend": "dask", "client": client}
    with client, joblib.parallel_config(**backend):
        if scheduler is not None and set(client.nthreads().values()) != {1}:
            raise UserError(f"{scheduler} needs workers of one thread each, for seeds are a process's: --nthreads 1")
        yield joblib.Parallel(return_as="generator_unordered", pre_dispatch="all", batch_size=1)
