"""Notebooks: only a full run on the full MNIST writes to _images/, and only one that succeeds is written."""

import os
from pathlib import Path

import nbformat
import pytest
from matplotlib import pyplot as plt

from experiments import UserError, execute, notebook
from experiments.notebook import Workspace
from vae.plotting import curves


@pytest.fixture(autouse=True)
def displayed(monkeypatch, embedded, offline):
    """What a notebook was given to show, in an empty working folder with no network."""
    images = []
    monkeypatch.setattr(notebook, "display", images.append)
    monkeypatch.setattr(notebook, "embedded_mnist", lambda: embedded)  # read once for all tests
    return images


def figure(last=1.0):
    return curves({"loss": {"train": [3.0, 2.0, last]}, "error": {"valid": [0.3, 0.2, 0.1]}})


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("smoke", "complete", "folder", "models"),
    [
        (True, True, "preview/smoke", "vae-smoke-"),  # even if MNIST is there
        (False, False, "preview", "preview/checkpoints/notebooks"),
        (False, True, "_images", "checkpoints/notebooks"),
    ],
)
def test_only_a_full_run_on_the_full_mnist_writes_to_images(
    smoke, complete, folder, models, tmp_path, monkeypatch, write_mnist, offline, capsys
):
    monkeypatch.setattr(notebook, "SMOKE", smoke)
    if complete:
        write_mnist(tmp_path / "data")
    before, workspace, shown = files(), Workspace(), figure()
    workspace.show(shown, "two curves", save_as="curves.png")
    preview, said = smoke or not complete, capsys.readouterr().out
    assert files() == sorted([*before, f"{folder}/curves.png"])
    assert ("PREVIEW" in shown.get_suptitle()) == preview
    assert len(workspace.mnist.test_images) == (500 if preview else 3)
    assert ("GOING ON WITH A PREVIEW" in said) == ("t10k-labels-idx1-ubyte" in said) == (not complete)
    assert workspace.count(100, 2) == (2 if smoke else 100)
    assert workspace.models.name.startswith(models) if smoke else str(workspace.models) == models
    assert not workspace.models.exists() or os.listdir(workspace.models) == []
    assert len(offline) == (not complete)


def test_damaged_mnist_stops_the_run(tmp_path, write_mnist):
    (write_mnist(tmp_path / "data") / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        Workspace()


def test_the_notebook_shows_what_is_saved_the_same_bytes_each_time(displayed):
    for _ in range(2):
        Workspace().show(figure(), "two curves", save_as="curves.png")
    saved = Path("preview/curves.png").read_bytes()
    assert [image.data for image in displayed] == [saved] * 2
    assert displayed[0]._repr_mimebundle_()[1] == {"image/png": {"alt": "two curves"}}
    assert not plt.get_fignums()


def write(source, path="given.ipynb"):
    """Write a notebook of one cell, and return its bytes."""
    kernel, cell = {"name": "python3", "display_name": "Python 3"}, nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    return Path(path).read_bytes()


def test_a_notebook_is_rewritten_with_its_output(tmp_path, write_mnist, monkeypatch):
    """On a machine without MNIST into the preview folder, over the original otherwise; however long TMPDIR is."""
    long = tmp_path / ("a" * 93)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    before = write("print(1)\n2")
    for complete, folder in enumerate((Path("preview"), Path())):
        if complete:
            write_mnist(tmp_path / "data")
        execute.run(["given.ipynb"])
        printed, shown = nbformat.read(folder / "given.ipynb", as_version=4).cells[0].outputs
        assert (printed.text, dict(shown.data)) == ("1\n", {"text/plain": "2"})
        assert (Path("given.ipynb").read_bytes() == before) != complete


def test_a_notebook_in_a_folder_is_rewritten_there(tmp_path, write_mnist):
    write_mnist(tmp_path / "data")
    Path("docs").mkdir()
    before, given = files(), "docs/given.ipynb"
    write("print(1)", given)
    execute.run([given])
    assert nbformat.read(given, as_version=4).cells[0].outputs[0].text == "1\n"
    assert files() == sorted([*before, given])


@pytest.mark.parametrize("failure", ["1 / 0", "import os; os._exit(1)"])
def test_a_notebook_that_fails_is_left_as_it_is(failure):
    before = write(failure)
    with pytest.raises(SystemExit, match=r"given\.ipynb failed and is unchanged"):
        execute.run(["given.ipynb"])
    assert Path("given.ipynb").read_bytes() == before
    assert files() == ["given.ipynb"]


@pytest.mark.parametrize("content", ['{"cells": [', "[]", "{}", '{"nbformat": 4, "cells": 1}'])
def test_what_is_no_notebook_is_named_and_left_alone_before_any_runs(content, monkeypatch):
    write("1 / 0")
    Path("damaged.ipynb").write_text(content)
    with pytest.raises(UserError, match=r"damaged\.ipynb is not a notebook"):
        execute.run(["given.ipynb", "damaged.ipynb"])
    assert Path("damaged.ipynb").read_text() == content
    assert files() == ["damaged.ipynb", "given.ipynb"]
