"""The command line: a mistake costs one line and exit code 2, trains nothing and leaves no file."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import runner, table
from experiments.__main__ import main
from experiments.data import LOADERS
from experiments.methods import BY_KEY
from experiments.runner import with_recipe
from vae.datasets import load_mnist
from vae.training import fit


@pytest.fixture(autouse=True)
def nowhere(offline, tmp_path, monkeypatch, embedded, add_data):
    """An empty working folder in which results and states would be kept, where nothing may be trained."""

    def train(*arguments, **options):
        raise ValueError("it trains")

    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "STATE", tmp_path / "checkpoints")
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results/ssl/mnist")
    monkeypatch.setattr("vae.recipes.fit", train)
    monkeypatch.setattr("nbclient.NotebookClient.execute", train)
    add_data(replace(embedded, name="mnist"))


def refuse(command, capsys):
    """Return the line in which the command was refused; its usage may stand before it."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(command)
    out, err = capsys.readouterr()
    *usage, told = err.splitlines()
    assert (stopped.value.code, out, err[-1]) == (2, "", "\n")
    assert told.startswith("python -m experiments") and (not usage or usage[0].startswith("usage: "))
    assert sorted(Path().rglob("*")) == before
    return told


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("", "command"),
        ("nonsense", "nonsense"),
        ("ssl --labels 5", "num_labeled = 5 must be at least one for each of 10 classes"),
        ("ssl --labels 4001", "at most the 4000 rows"),
        ("ssl --methods m2 --labels 3900", "3900 labels leave 100 images"),
        ("ssl --labels 0", "0 must be at least 1"),
        ("ssl --splits -1", "-1 must be at least 0"),
        ("ssl --jobs 0", "0 must be at least 1"),
        ("ssl --methods nonsense m2", "no method is called nonsense; there are mlp"),
        ("ssl --data nonsense", "nonsense"),
        ("m1 nonsense", "no run is called 'nonsense'; there are mnist-50"),
        ("m1 latents-3 --jobs 0", "0 must be at least 1"),
        ("own --data wine nonsense", "no data set is called nonsense; there are digits"),
        ("own --splits -1", "-1 must be at least 0"),
        ("table", "there are no results"),
        ("notebooks", "notebook"),
        ("notebooks missing.ipynb", "missing.ipynb"),
    ],
)
def test_a_mistake_is_told_in_one_line(command, complaint, capsys):
    assert complaint in refuse(command.split(), capsys)


@pytest.mark.parametrize("command", ["ssl", "ssl --data fashion-mnist", "m1 latents-3", "own"])
@pytest.mark.parametrize(("place", "complaint"), [("empty", "no network"), ("nonexistent", "is no folder")])
def test_missing_data_are_told_in_one_line(command, place, complaint, capsys, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("VAE_DATA", str(tmp_path / place))
    monkeypatch.setitem(LOADERS, "mnist", load_mnist)
    err = refuse(command.split(), capsys)
    assert str(tmp_path / place) in err and complaint in err


def test_help_is_shown_on_a_terminal_that_knows_only_ascii():
    command = [sys.executable, "-m", "experiments", "ssl", "--help"]
    here = {"cwd": Path(__file__).parent.parent, "env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    told = subprocess.run(command, **here, capture_output=True, text=True, check=True).stdout
    assert "every method ? number of labels" in " ".join(told.split())


def test_a_checkpoint_of_other_settings_is_refused_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("vae.recipes.fit", fit)
    checkpoint = tmp_path / "checkpoints/ssl/mnist/mlp-100-0/labels only.pt"
    row = BY_KEY["mlp"]
    small = replace(row.method.smoke(), hidden_dims=(20,))
    for lr in (1e-3, 2e-3):
        monkeypatch.setitem(BY_KEY, "mlp", replace(row, method=with_recipe(small, lr=lr)))
        with contextlib.suppress(SystemExit), monkeypatch.context() as patch:
            patch.setattr(runner, "write_result", lambda result, path: sys.exit())  # as if killed at the end
            main(["ssl", "--methods", "mlp", "--labels", "100", "--splits", "0", "--jobs", "1"])
    err = capsys.readouterr().err
    assert f"error: {checkpoint} is of another run: lr 0.001 instead of 0.002; delete it to start over\n" in err


def test_an_error_of_the_program_is_no_mistake_of_the_user_and_keeps_its_traceback():
    with pytest.raises(ValueError, match="it trains"):
        main(["ssl", "--jobs", "1"])
