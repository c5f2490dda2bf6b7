"""Every method × number of labels × draw of labels, one small JSON file each: python -m vae.sweep --help.

What is already there is skipped; what a kill interrupts resumes from its last epoch.
"""

import argparse
import importlib
import os
import sys
import time
from itertools import product
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import joblib
import torch

from vae.data import labeled_split
from vae.jobs import data_md5, finished_result, load_data, run_job, write_result
from vae.methods import METHODS, METHODS_AND_VARIANTS, MORE, UNDONE, Task, settings_of
from vae.stages import train_m1
from vae.training import error

LABELS = (100, 600, 1000, 3000)
SPLITS = 5
WORKERS_TIMEOUT = 60  # seconds
SMOKE = os.environ.get("VAE_SMOKE") == "1"


class Cell(NamedTuple):
    """One entry of the comparison. Split s draws its labels with seed s; settings were chosen on that of seed 1000."""

    method: str
    labels: int
    split: int

    def __str__(self):
        return f"{self.method}-{self.labels}-{self.split}"


RESULT_KEYS = {*Cell._fields, "valid_error", "test_error", "updates", "cpu_minutes"}


def run_cell(cell, m1, results, state, smoke=False):
    """Train `cell` on this process's one thread, write its result to the folder `results`, and return it."""
    settings = settings_of(cell.method, smoke)
    return run_job(str(cell), settings, lambda folder: _result(cell, m1, settings, folder, smoke), results, state)


def _result(cell, m1, settings, folder, smoke):
    mnist = load_data(smoke)
    torch.manual_seed(cell.split)
    generator = torch.Generator().manual_seed(cell.split)
    labeled, unlabeled = labeled_split(mnist.train_labels, cell.labels, generator)
    task = Task(mnist, labeled, unlabeled, generator, m1, settings, folder)
    start = time.process_time()
    classify, history = METHODS_AND_VARIANTS[cell.method](task)
    seconds = sum(epoch["cpu_seconds"] for epoch in history) if history else time.process_time() - start
    return {
        **cell._asdict(),
        "valid_error": round(error(classify, mnist.valid_images, mnist.valid_labels), 2),
        "test_error": round(error(classify, mnist.test_images, mnist.test_labels), 2),
        "epochs": len(history),
        "updates": len(history) * (len(unlabeled) // settings["batch_unlabeled"]) if history else 0,
        "cpu_minutes": round(seconds / 60, 2),
        "seed": cell.split,
        "data_md5": data_md5(mnist),
    }


def missing_cells(cells, results, smoke=False):
    """Return those `cells` that have no result of today's settings in the folder `results` yet."""
    return [cell for cell in cells if finished_result(str(cell), settings_of(cell.method, smoke), results) is None]


def sweep(cells, m1, results, state, parallel, smoke=False):
    """Run the `cells` that have no result in the folder `results` yet, through `parallel`, each to a file of its own.

    `state` is the folder for what a killed run resumes from.
    """
    missing = missing_cells(cells, results, smoke)
    print(f"{len(cells) - len(missing)} of {len(cells)} results are there, {len(missing)} to go", flush=True)
    start, finished = time.monotonic(), {}
    jobs = (joblib.delayed(run_cell)(cell, m1, results, state, smoke) for cell in missing)
    for result in parallel(jobs):
        cell = Cell(result["method"], result["labels"], result["split"])
        write_result(result, str(cell), results)  # here, too: a worker on another machine may have another disk
        finished[cell] = result["cpu_minutes"]
        left = minutes_left(finished, missing, (time.monotonic() - start) / 60)
        errors = f"error {result['valid_error']:.2f} % on validation, {result['test_error']:.2f} % on test images"
        print(f"[{len(finished)}/{len(missing)}] {cell}: {errors}; about {left:.0f} minutes left", flush=True)


def minutes_left(finished, cells, elapsed):
    """Estimate from {cell: its CPU minutes} after `elapsed` minutes: a cell costs what its method costs on average."""
    by_method = {c.method: mean(t for d, t in finished.items() if d.method == c.method) for c in finished}
    average = mean(finished.values())
    to_go = sum(by_method.get(cell.method, average) for cell in cells if cell not in finished)
    return elapsed * to_go / max(sum(finished.values()), 0.01)


def connect(address):
    """Return a client of the Dask scheduler at `address`, sure that its workers can import this package."""
    try:
        from dask.distributed import Client
    except ImportError:
        sys.exit("a scheduler's address needs Dask: pip install 'dask[distributed]'")
    client = Client(address)
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
        client.run(importlib.import_module, "vae.methods")
    except (TimeoutError, ImportError) as problem:
        client.close()
        sys.exit(
            f"the workers of {address} cannot run the sweep ({problem!r}): start at least one, each with "
            "requirements.txt installed and this folder as its working directory or in PYTHONPATH"
        )
    if set(client.nthreads().values()) != {1}:
        client.close()
        sys.exit(f"the workers of {address} must have one thread each, for seeds are a process's: --nthreads 1")
    return client


def main(arguments=None):
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m vae.sweep", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS_AND_VARIANTS, help="all, with variants")
    parser.add_argument("--labels", nargs="+", type=int, default=LABELS, help="variants only with 100, unless named")
    parser.add_argument("--splits", type=int, default=SPLITS, help="draws of labels, 0 … SPLITS − 1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--scheduler", help="address of a Dask scheduler whose workers are used instead")
    options = parser.parse_args(arguments)
    root = Path("preview/smoke" if SMOKE else ".")
    results, state = (root / "results/ssl").absolute(), (root / "checkpoints/sweep").absolute()
    cells = [Cell(*cell) for cell in product(options.methods or METHODS, options.labels, range(options.splits))]
    if not options.methods and LABELS[0] in options.labels:
        cells += [Cell(*cell) for cell in product(MORE, LABELS[:1], range(options.splits))]
        cells += [Cell(name, LABELS[0], 0) for name in UNDONE]
    if not missing_cells(cells, results, SMOKE):
        print(f"all {len(cells)} results are there")
        return
    m1 = train_m1(load_data(SMOKE), state / "m1.pt", SMOKE)
    if options.scheduler:
        backend = {"backend": "dask", "client": connect(options.scheduler)}
    else:
        backend = {"backend": "loky", "n_jobs": options.jobs, "inner_max_num_threads": 1}
    with joblib.parallel_config(**backend):
        parallel = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all", batch_size=1)
        sweep(cells, m1, results, state, parallel, SMOKE)


if __name__ == "__main__":
    importlib.import_module("vae.sweep").main()  # by its name, under which the workers find `run_cell`
