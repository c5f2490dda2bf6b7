"""Kill -9 at random moments: every file stays whole, and what resumes ends, bit for bit, as if nothing had happened."""

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_notebook import write
from test_runner import FORK, ROOT, contents, train

from experiments import execute, notebook, runner
from experiments.__main__ import main
from experiments.methods import BY_KEY

CELL = """
from matplotlib import pyplot as plt
from experiments import notebook
notebook.load_mnist = lambda: None
notebook.Workspace().show(plt.figure(), "nothing", save_as="figure.png")
"""
COMPARISON = ["ssl", "--methods", "mlp", "m1knn", "--labels", "100", "--splits", "0", "1", "--jobs", "1"]
PROGRAMS = {  # what runs, and in how many processes at once
    "training": (lambda: train(Path(), epochs=400), 1),
    "checkpoints": (lambda: train(Path(), epochs=40, width=40_000), 1),
    "comparison": (lambda: main(COMPARISON), 2),
    "notebook": (lambda: execute.run(["given.ipynb"]), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "number"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_kill_leaves_whole_files_and_exact_resume(program, number, tmp_path, embedded, add_data, monkeypatch):
    def run(folder, kill_after=None):
        def work():
            os.chdir(folder)
            runner.RESULTS, runner.STATE = folder / "results", folder / "checkpoints"
            program()

        processes = [FORK.Process(target=work) for _ in range(number)]
        for process in processes:
            process.start()
        time.sleep(kill_after or 0)
        for process in processes:
            if kill_after and process.is_alive():
                killed.append(process)
                process.kill()  # with -9
            process.join()
            assert kill_after or process.exitcode == 0
        return contents(folder)

    add_data(replace(embedded, name="mnist"))
    monkeypatch.setattr(notebook, "load_mnist", lambda: None)  # as if it were there
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for key in ("mlp", "m1knn"):
        monkeypatch.setitem(BY_KEY, key, replace(BY_KEY[key], method=BY_KEY[key].method.smoke()))
    torch.set_num_threads(1)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    before, clock, rng, killed = write(CELL), time.monotonic(), random.Random(0), []
    expected = run(shutil.copytree(tmp_path / "new", tmp_path / "reference"))
    seconds = time.monotonic() - clock
    for number_of_kill in range(4):
        folder = shutil.copytree(tmp_path / "new", tmp_path / f"kill {number_of_kill}")
        left = run(folder, rng.uniform(0.1, 0.9) * seconds)
        assert left.pop("given.ipynb") in (before, expected["given.ipynb"])
        assert all(content == expected[path] for path, content in left.items() if path.endswith(".png"))
        assert run(folder) == expected
    assert len(killed) > 1
