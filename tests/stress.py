"""Kill -9 at random moments, and look at what is left: python -m tests.stress --kills 50.

Training, the writing of checkpoints, two comparisons into one folder and the regeneration of a notebook are killed in
turn. After each kill every file must be whole, and what resumes must end, bit for bit, as if nothing had happened.
"""

import argparse
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
from torch.utils._pytree import tree_flatten

from experiments import execute, notebook, runner
from experiments.__main__ import main as command_line
from experiments.methods import EVERY
from vae.checkpoint import load_state
from vae.data import Batches, binarize
from vae.datasets import embedded_mnist
from vae.saving import load
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
    """Train an auto-encoder of 64 binarized images, whose checkpoints are small or of 3 MB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 20))
    batches = Batches(torch.rand(64, 20), batch_size, torch.Generator().manual_seed(0), binarize)
    fit(lambda x: (model(x) - x).square().mean(), model, batches, epochs=epochs, lr=1e-3, checkpoint="run.pt")


def compare():
    """Run four jobs, for which M1 is trained first, a small one."""
    runner.RESULTS, runner.STATE = Path("results").absolute(), Path("checkpoints").absolute()
    command_line(["ssl", "--methods", "mlp", "m1knn", "--labels", "100", "--splits", "0", "1", "--jobs", "1"])


def run_notebook():
    """Regenerate the notebook and its figure, as on a machine that has MNIST."""
    notebook.load_mnist = lambda: None
    execute.run(["tiny.ipynb"])


SCENARIOS = {  # what runs, in how many processes, and its share of the kills
    "training": (partial(train, width=8, epochs=20, batch_size=4), 1, 0.4),
    "checkpoints": (partial(train, width=500, epochs=15, batch_size=64), 1, 0.24),
    "comparison": (compare, 2, 0.16),
    "notebook": (run_notebook, 1, 0.2),
}


def prepare(folder):
    """Leave a notebook that was never run, and the figure of another day."""
    kernel, cell = {"name": "python3", "display_name": "Python 3"}, nbformat.v4.new_code_cell(CELL, id="cell")
    (folder / "_images").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), folder / "tiny.ipynb")
    PIL.Image.new("RGB", (10, 10)).save(folder / "_images/figure.png")


def read(path):
    """Return all that a file holds but times, in a form that can be compared; fail if it is not whole."""
    if path.suffix == ".json":
        return runner.load_result(path) | {"cpu_minutes": 0}
    if path.suffix == ".pt":
        leaves, structure = tree_flatten(state := load_state(path))
        seconds = [epoch["cpu_seconds"] for epoch in state.get("history", ())]
        plain = [leaf.tolist() if torch.is_tensor(leaf) else leaf for leaf in leaves]
        return structure, [leaf for leaf in plain if leaf not in seconds]
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load(path).state_dict().items()}
    if path.suffix == ".png":
        PIL.Image.open(path).load()
    else:
        nbformat.validate(nbformat.read(path, as_version=4))
    return path.read_bytes()


def contents(folder):
    """Read every file that a program would read."""
    files = (path for path in folder.rglob("*") if path.suffix in (".json", ".pt", ".safetensors", ".png", ".ipynb"))
    return {str(path.relative_to(folder)): read(path) for path in files if not path.name.startswith(".")}


def in_folder(function, folder):
    """Run `function` in `folder`, silently."""
    os.chdir(folder)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    function()


def start(function, number, folder):
    """Start `number` processes that run `function` in `folder`."""
    processes = [CONTEXT.Process(target=in_folder, args=(function, folder)) for _ in range(number)]
    for process in processes:
        process.start()
    return processes


def run_to_the_end(function, number, folder):
    """Return the contents of `folder` after running `function` in it."""
    for process in start(function, number, folder):
        process.join()
        assert process.exitcode == 0, f"it failed in {folder}"
    return contents(folder)


def stress(run, kills, root, rng):
    """Kill one scenario, `run`, `kills` times. Returns how many processes were killed."""
    prepare(prepared := root / "prepared")
    before, reference, clock = contents(prepared), shutil.copytree(prepared, root / "reference"), time.monotonic()
    expected = run_to_the_end(*run, reference)
    seconds, folder, killed, tries = time.monotonic() - clock, None, 0, 0
    while killed < kills:
        tries += 1
        folder = folder or shutil.copytree(prepared, root / f"folder {tries}")
        processes = start(*run, folder)
        time.sleep(rng.uniform(0, seconds))
        alive = [process for process in processes if process.is_alive()]
        orphans = [child for process in alive for child in psutil.Process(process.pid).children(recursive=True)]
        for process in processes:
            process.kill()  # with -9
            process.join()
        left = contents(folder)
        for path, was in before.items():
            assert left[path] in (was, expected[path]), f"{path} is neither old nor new"
        if alive:
            killed += len(alive)
            assert run_to_the_end(*run, shutil.copytree(folder, root / f"copy {tries}")) == expected, (
                "it ended otherwise"
            )
        else:
            assert left == expected
            folder = None
        for orphan in (orphan for orphan in orphans if orphan.is_running()):  # which may still have been at work
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
    for name, (*run, share) in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as root:
            total += stress(run, round(share * options.kills) or 1, Path(root), rng)
        print(f"{name}: {total} kills so far", flush=True)
    print(f"{total} kills: no broken file, and every resumed run ended bit for bit as one that was never killed")


if __name__ == "__main__":
    main()
