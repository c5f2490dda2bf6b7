"""Kill -9 at random moments, and look at what is left: python -m tests.stress --kills 50.

Training, the writing of checkpoints, two comparisons into one folder and the regeneration of a notebook are killed in
turn. After each kill every file must be whole, and what resumes must end, bit for bit, as if nothing had happened.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import PIL.Image
import psutil
import torch
from torch import nn

from experiments import execute, notebook, runner
from experiments.__main__ import main as command_line
from experiments.methods import EVERY
from vae.checkpoint import load_state
from vae.data import Batches, binarize
from vae.datasets import embedded_mnist
from vae.training import fit

CONTEXT = multiprocessing.get_context("fork")  # nothing is imported again
CELL = """
from matplotlib import pyplot as plt
from experiments import notebook
notebook.load_mnist = lambda: None
figure = plt.figure()
figure.gca().plot([1, 3, 2])
notebook.Workspace().show(figure, save_as="figure.png")
"""


def train(width, epochs, batch_size):
    """Train an auto-encoder of 64 binarized images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 20))
    batches = Batches(torch.rand(64, 20), batch_size, torch.Generator().manual_seed(0), binarize)
    fit(lambda x: (model(x) - x).square().mean(), model, batches, epochs=epochs, lr=1e-3, checkpoint="run.pt")


def compare():
    """Run four jobs, for which M1 is trained first, a small one."""
    runner.RESULTS, runner.STATE = Path("results").absolute(), Path("checkpoints").absolute()
    command_line(["ssl", "--methods", "mlp", "m1knn", "--labels", "100", "--splits", "2", "--jobs", "1"])


def prepare_notebook():
    """Leave a notebook that was never run, and the figure of another day."""
    kernel, cell = {"name": "python3", "display_name": "Python 3"}, nbformat.v4.new_code_cell(CELL, id="cell")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), "tiny.ipynb")
    Path("_images").mkdir()
    PIL.Image.new("RGB", (10, 10)).save("_images/figure.png")


def run_notebook():
    """Regenerate the notebook and its figure, as on a machine that has MNIST."""
    notebook.load_mnist = lambda: None
    execute.run(["tiny.ipynb"])


SCENARIOS = {  # what runs, in how many processes, what it finds, and its share of the kills
    "training": (partial(train, width=8, epochs=20, batch_size=4), 1, None, 0.4),
    "checkpoints of 3 MB": (partial(train, width=500, epochs=15, batch_size=64), 1, None, 0.24),
    "comparison": (compare, 2, None, 0.16),
    "notebook": (run_notebook, 1, prepare_notebook, 0.2),
}


def _state(path):
    """Say all that a checkpoint or a model holds but times."""
    state, content = load_state(path), io.BytesIO()
    for epoch in state.get("history", ()):
        epoch.pop("cpu_seconds")
    tensors = [state.pop(key, None) for key in ("model", "optimizer", "schedule", "random", "batches")]
    torch.save(tensors, content)
    return json.dumps(state), content.getvalue()


def _picture(path):
    PIL.Image.open(path).load()
    return path.read_bytes()


def _notebook(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    return path.read_bytes()


READERS = {".pt": _state, ".png": _picture, ".ipynb": _notebook}
READERS[".json"] = lambda path: runner.load_result(path) | {"cpu_minutes": 0}


def contents(folder):
    """Read every file that a program would read; fail if one is not whole."""
    files = [path for path in folder.rglob("*") if path.suffix in READERS and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): READERS[path.suffix](path) for path in files}


def _in_folder(function, folder):
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    function()


def start(function, folder, number):
    """Start `number` processes that run `function` in `folder`."""
    processes = [CONTEXT.Process(target=_in_folder, args=(function, folder)) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def run_to_the_end(function, folder, number):
    """Return the contents of `folder` after running `function` in it."""
    for process in start(function, folder, number):
        process.join()
        assert process.exitcode == 0, f"it failed in {folder}"
    return contents(folder)


def kill(processes):
    """Kill -9 the processes. Returns how many were alive, and their children, orphans that may still be at work."""
    alive = [process for process in processes if process.is_alive()]
    children = [child for process in alive for child in psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.kill()
        process.join()
    return len(alive), children


def stress(name, kills, root, rng):
    """Kill one scenario `kills` times. Returns how many were killed."""
    run, number, prepare, _ = SCENARIOS[name]
    prepared, killed, tries = root / "prepared", 0, 0
    prepared.mkdir()
    if prepare:
        os.chdir(prepared)
        prepare()
    before, reference, clock = contents(prepared), shutil.copytree(prepared, root / "reference"), time.monotonic()
    expected = run_to_the_end(run, reference, number)
    seconds, folder = time.monotonic() - clock, None
    while killed < kills:
        tries += 1
        folder = folder or shutil.copytree(prepared, root / f"folder {tries}")
        processes = start(run, folder, number)
        time.sleep(rng.uniform(0, seconds))
        alive, orphans = kill(processes)
        left = contents(folder)
        for path, was in before.items():
            assert left[path] in (was, expected[path]), f"{path} is neither old nor new"
        if alive:
            killed += alive
            copy = shutil.copytree(folder, root / "copy")
            assert run_to_the_end(run, copy, number) == expected, f"{name} did not end as if nothing had happened"
            shutil.rmtree(copy)
        else:
            assert left == expected
            folder = None
        for orphan in (orphan for orphan in orphans if orphan.is_running()):
            orphan.kill()
    return killed


def main():
    """Parse the command line, and kill."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, small = embedded_mnist(), EVERY["m1knn"].smoke()
    runner.LOADERS["mnist"] = lambda: data
    EVERY.update(mlp=EVERY["mlp"].smoke(), m1knn=replace(small, m1=replace(small.m1, hidden_dims=(20,))))
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # imports much, at its first use
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    rng, total = random.Random(options.seed), 0
    for name, (*_, share) in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as root:
            killed = stress(name, round(share * options.kills) or 1, Path(root), rng)
            os.chdir("/")
        total += killed
        print(f"{name}: {killed} kills", flush=True)
    print(f"{total} kills: no broken file, and every resumed run ended bit for bit as one that was never killed")


if __name__ == "__main__":
    main()
