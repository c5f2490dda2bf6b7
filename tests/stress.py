"""Kill -9 at random moments, and look at what is left: python -m tests.stress --kills 50.

Training, the writing of checkpoints, two sweeps into one folder and the regeneration of a notebook are killed in turn.
After each kill every file must be whole, and what resumes must end, bit for bit, as if nothing had happened.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import nbformat
import PIL.Image
import psutil
import torch
from torch import nn

from vae import execute, stages, sweep, workspace
from vae.data import MNIST, Batches, binarize
from vae.jobs import load_data, load_result
from vae.training import fit, load_checkpoint

CONTEXT = multiprocessing.get_context("fork")  # nothing is imported again
SWEEP = ["--methods", "mlp", "m1knn", "--labels", "100", "--splits", "2", "--jobs", "1"]
CELL = """
import torch
from matplotlib import pyplot as plt
from vae import workspace
from vae.data import MNIST
workspace.load_mnist = lambda: MNIST(*[torch.zeros(2, 784)] * 6)
figure = plt.figure()
figure.gca().plot([1, 3, 2])
workspace.Workspace().show(figure, save_as="figure.png")
"""


def train(width, epochs, batch_size):
    """Train an auto-encoder of 64 binarised images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 20))
    batches = Batches(torch.rand(64, 20), batch_size, torch.Generator().manual_seed(0), binarize)
    fit(lambda x: (model(x) - x).square().mean(), model, batches, epochs=epochs, lr=1e-3, checkpoint="run.pt")


def train_long():
    """Spend the time in steps."""
    train(width=8, epochs=20, batch_size=4)


def write_checkpoints():
    """Spend the time in writing checkpoints of 3 MB, one after each step."""
    train(width=500, epochs=15, batch_size=64)


def run_sweep():
    """Run four jobs, for which M1 is trained first, a small one."""
    sweep.SMOKE = True
    sweep.train_m1 = mock.patch.dict(stages.M1_SETTINGS, hidden_dims=[20])(stages.train_m1)
    sweep.main(SWEEP)


def prepare_notebook():
    """Leave a notebook that was never run, and the figure of another day."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    cell = nbformat.v4.new_code_cell(CELL, id="cell")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), "tiny.ipynb")
    Path("_images").mkdir()
    PIL.Image.new("RGB", (10, 10)).save("_images/figure.png")


def run_notebook():
    """Regenerate the notebook and its figure, as on a machine that has MNIST."""
    workspace.load_mnist = lambda: MNIST(*[torch.zeros(2, 784)] * 6)
    execute.main(["tiny.ipynb"])


SCENARIOS = {  # what runs, in how many processes, what it finds, and its share of the kills
    "training": (train_long, 1, None, 0.4),
    "checkpoints": (write_checkpoints, 1, None, 0.24),
    "sweep": (run_sweep, 2, None, 0.16),
    "notebook": (run_notebook, 1, prepare_notebook, 0.2),
}


def _result(path):
    return {key: value for key, value in load_result(path).items() if key != "cpu_minutes"}


def _digest(path):
    """Say all that a checkpoint holds but times, in few letters."""
    state = load_checkpoint(path)
    for epoch in state["history"]:
        epoch.pop("cpu_seconds", None)
    content = io.BytesIO()
    torch.save(json.loads(json.dumps(state["history"])), content)
    torch.save([state[key] for key in ("model", "optimizer", "schedule", "random", "batches")], content)
    return hashlib.md5(content.getvalue()).hexdigest()


def _picture(path):
    PIL.Image.open(path).load()
    return path.read_bytes()


def _notebook(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    return path.read_bytes()


READERS = {".json": _result, ".pt": _digest, ".png": _picture, ".ipynb": _notebook}


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
        assert process.exitcode == 0, f"{function.__name__} failed in {folder}"
    return contents(folder)


def kill(processes):
    """Kill -9 the processes. Returns their children, orphans that may still be at work."""
    children = [c for p in processes if p.is_alive() for c in psutil.Process(p.pid).children(recursive=True)]
    for process in processes:
        process.kill()
        process.join()
    return children


def stress(name, kills, root, rng):
    """Kill one scenario `kills` times. Returns counts."""
    run, number, prepare, _ = SCENARIOS[name]
    prepared = root / "prepared"
    prepared.mkdir()
    if prepare:
        os.chdir(prepared)
        prepare()
    before = contents(prepared)
    reference = shutil.copytree(prepared, root / "reference")
    clock = time.monotonic()
    expected = run_to_the_end(run, reference, number)
    seconds = time.monotonic() - clock
    folder, counts = None, {"kills": 0, "during a write": 0, "resumed": 0, "finished first": 0}
    while counts["kills"] < kills:
        folder = folder or shutil.copytree(prepared, root / f"folder {sum(counts.values())}")
        processes = start(run, folder, number)
        time.sleep(rng.uniform(0, seconds))
        alive = [process.is_alive() for process in processes]
        orphans = kill(processes)
        left = contents(folder)
        for path, was in before.items():
            assert left[path] in (was, expected[path]), f"{path} is neither old nor new"
        if not any(alive):
            assert left == expected
            counts["finished first"] += 1
            folder = None
            continue
        counts["kills"] += sum(alive)
        counts["during a write"] += any(folder.rglob("*.part"))
        counts["resumed"] += bool(left != before and left != expected)
        copy = shutil.copytree(folder, root / "copy")
        assert run_to_the_end(run, copy, number) == expected, f"{name} did not end as if nothing had happened"
        shutil.rmtree(copy)
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()
    return counts


def main():
    """Parse the command line, and kill."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_data(True)
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # imports much, at its first use
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    rng, total = random.Random(options.seed), 0
    for name, (*_, share) in SCENARIOS.items():
        clock = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            counts = stress(name, round(share * options.kills) or 1, Path(root), rng)
            os.chdir("/")
        total += counts["kills"]
        print(f"{name}: {counts}, {time.monotonic() - clock:.0f} s", flush=True)
    print(f"{total} kills: no broken file, and every resumed run ended bit for bit as one that was never killed")


if __name__ == "__main__":
    main()
