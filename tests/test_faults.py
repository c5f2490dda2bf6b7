"""Files that are damaged, swapped or cannot be written, and programs that share them: right answers or clear errors."""

import multiprocessing
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from vae import execute, jobs, table, workspace
from vae.data import Batches, MNISTNotFoundError, load_mnist
from vae.files import atomic_path
from vae.jobs import load_result, run_job
from vae.stages import fit_stage
from vae.training import fit, load_checkpoint

FORK = multiprocessing.get_context("fork")


def train(checkpoint, name="model"):
    torch.manual_seed(0)
    model, batches = nn.Linear(6, 4), Batches(torch.rand(20, 6), 5, torch.Generator().manual_seed(0))
    fit(lambda x: model(x).square().mean(), model, batches, epochs=2, lr=0.1, checkpoint=checkpoint, name=name)
    return model.weight.detach()


def flatten(value):
    """The tensors and plain values in nested containers, in order."""
    if isinstance(value, dict | list | tuple):
        return [leaf for part in (value.items() if isinstance(value, dict) else value) for leaf in flatten(part)]
    return [value.tolist() if torch.is_tensor(value) else value]


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    """Of 100 files, each with another bit flipped anywhere, many are refused and none is read as another state."""
    path, damaged = tmp_path / "run.pt", tmp_path / "damaged.pt"
    train(path)
    whole, content, rng, refused = flatten(load_checkpoint(path)), path.read_bytes(), random.Random(0), 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            assert flatten(load_checkpoint(damaged)) == whole
        except ValueError as error:
            assert re.search(r"damaged\.pt is not a .*delete it", str(error))
            refused += 1
    assert refused > 30


def test_the_checkpoint_of_another_stage_is_refused(tmp_path):
    """Though the settings are the same: two stages of one method, whose files changed places."""
    model, batches = nn.Linear(6, 4), Batches(torch.rand(20, 6), 5, torch.Generator())
    settings = {"epochs": {"stopped": 1, "released": 1}, "lr": 0.1}
    fit_stage(lambda x: model(x).square().mean(), model, batches, "stopped", settings, tmp_path)
    (tmp_path / "stopped.pt").rename(tmp_path / "released.pt")
    with pytest.raises(ValueError, match=r"released\.pt holds the run 'stopped', not 'released'; delete it"):
        fit_stage(None, model, batches, "released", settings, tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"settings": {}}'])
def test_a_damaged_result_is_named_and_never_counted(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    path = tmp_path / "m2-100-0.json"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"m2-100-0\.json is not a result .*delete it"):
        table.read_results(tmp_path)


def test_results_that_changed_places_are_named(tmp_path):
    results = Path(__file__).parent.parent / "results/ssl"
    shutil.copy(results / "m2-100-0.json", tmp_path / "m2-100-1.json")
    with pytest.raises(ValueError, match=r"m2-100-1\.json is the result of m2-100-0; delete it"):
        table.read_results(tmp_path)
    run_job("first", {}, lambda folder: {"answer": 1}, tmp_path / "jobs", tmp_path)
    (tmp_path / "jobs/first.json").rename(tmp_path / "jobs/second.json")
    with pytest.raises(ValueError, match=r"second\.json is the result of first; delete it"):
        run_job("second", {}, lambda folder: {"answer": 2}, tmp_path / "jobs", tmp_path)


def test_mnist_files_that_changed_places_are_named(offline, write_mnist, tmp_path):
    folder = write_mnist(tmp_path)
    train_images, test_images = folder / "train-images-idx3-ubyte", folder / "t10k-images-idx3-ubyte"
    train_images.rename(folder / "other")
    test_images.rename(train_images)
    (folder / "other").rename(test_images)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is not the MNIST file of that name.*fetch it again"):
        load_mnist(tmp_path)


def test_a_damaged_notebook_is_named_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "Workspace", lambda: type("Full", (), {"note": "", "folder": tmp_path}))
    monkeypatch.chdir(tmp_path)
    Path("damaged.ipynb").write_text('{"cells": [')
    with pytest.raises(SystemExit, match=r"(?s)damaged\.ipynb failed and is unchanged.*JSON"):
        execute.main(["damaged.ipynb"])
    assert Path("damaged.ipynb").read_text() == '{"cells": ['


@pytest.fixture(params=["full", "read-only"])
def disk(request, tmp_path):
    """A disk of its own, of 64 kB, and a function that makes it full or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")

    def spoil():
        if request.param == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        else:
            with open(folder / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
                while True:
                    ballast.write(bytes(4096))

    yield folder, spoil
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_cannot_be_written_to_keeps_the_checkpoint_and_says_what_to_do(disk, tmp_path):
    folder, spoil = disk
    path, model = folder / "run.pt", nn.Linear(6, 4)
    batches, epochs = Batches(torch.rand(20, 6), 5, torch.Generator().manual_seed(0)), []

    def evaluate():
        epochs.append(1)
        if len(epochs) == 2:
            spoil()
        return {}

    options = {"epochs": 3, "lr": 0.1, "checkpoint": path}
    with pytest.raises(OSError, match=rf"{re.escape(str(path))} could not be written and is as it was.*make room"):
        fit(lambda x: model(x).square().mean(), model, batches, evaluate=evaluate, **options)
    assert len(load_checkpoint(path)["history"]) == 1
    assert not list(folder.glob(".*"))


def test_a_disk_that_cannot_be_written_to_keeps_results_and_figures(disk):
    folder, spoil = disk
    run_job("first", {}, lambda folder: {"answer": 1}, folder / "results", folder / "state")
    figure = folder / "figure.png"
    figure.write_bytes(b"old")
    spoil()

    def talk(_):
        print("0123456789" * 999)
        return {}

    writes = (
        lambda: jobs.write_result({"answer": "2" * 9999}, "first", folder / "results"),
        lambda: jobs.write_result({"answer": 2}, "first", folder / "new folder"),
        lambda: workspace.Workspace._write(type("Full", (), {"folder": folder}), bytes(9999), "figure.png"),
        lambda: run_job("second", {}, talk, folder / "results", folder / "state"),
    )
    for write in writes:
        with pytest.raises(OSError, match=r"(disk.*make room|make room.*disk)"):
            write()
    assert load_result(folder / "results/first.json")["answer"] == 1
    assert figure.read_bytes() == b"old"


def test_mnist_that_cannot_be_kept_is_reported_with_the_places_searched(disk, tmp_path, monkeypatch):
    folder, spoil = disk
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAE_DATA", raising=False)

    def download(root, download):
        (Path(root) / "train-images-idx3-ubyte.gz").write_bytes(bytes(9999))

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    spoil()
    with pytest.raises(MNISTNotFoundError, match=r"(?s)(No space left|Read-only).*Copy the four files"):
        load_mnist(folder)
    assert "MNIST" not in os.listdir(folder) or not any((folder / "MNIST/raw").iterdir())


def in_two_processes(function, *arguments):
    processes = [FORK.Process(target=function, args=(*arguments, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_two_programs_may_download_mnist_at_once(offline, write_mnist, tmp_path, monkeypatch):
    """Each file arrives byte by byte in both, and a third program sees none of it before it is whole."""
    source = write_mnist(tmp_path / "source")

    def slowly(root, download):
        raw = Path(root) / "MNIST/raw"
        raw.mkdir(parents=True)
        for name in sorted(os.listdir(source)):
            content = (source / name).read_bytes()
            with (raw / name).open("wb", buffering=0) as file:
                for part in (content[:100], content[100:]):
                    file.write(part)
                    time.sleep(0.05)
                    for seen in (tmp_path / "data/MNIST/raw").iterdir():
                        assert seen.read_bytes() == (source / seen.name).read_bytes()

    def load(number):
        time.sleep(0.1 * number)
        assert len(load_mnist(tmp_path / "data").test_images) == 3

    monkeypatch.setattr("torchvision.datasets.MNIST", slowly)
    in_two_processes(load)
    assert os.listdir(tmp_path / "data") == ["MNIST"]
    assert sorted(os.listdir(tmp_path / "data/MNIST/raw")) == sorted(os.listdir(source))


def test_a_download_cut_short_leaves_nothing_that_is_taken_for_mnist(offline, write_mnist, tmp_path, monkeypatch):
    source = write_mnist(tmp_path / "source")

    def cut_short(root, download):
        shutil.copytree(source, Path(root) / "MNIST/raw")
        (Path(root) / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"a part")
        raise RuntimeError("connection lost")

    monkeypatch.setattr("torchvision.datasets.MNIST", cut_short)
    with pytest.raises(MNISTNotFoundError, match="connection lost"):
        load_mnist(tmp_path / "data")
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda root, **_: shutil.copytree(source, f"{root}/MNIST/raw"))
    assert len(load_mnist(tmp_path / "data").test_images) == 3


def test_two_sweeps_share_a_folder_and_no_job_is_done_twice(tmp_path, monkeypatch):
    """Both find all results, and of every job there is one line in the log of who did it."""
    names = [f"job-{number}" for number in range(8)]

    def compute(name, folder):
        (folder / "half").write_text("half a run")
        time.sleep(0.02)
        with open(tmp_path / "done", "a") as log:
            log.write(f"{name}\n")
        return {"answer": int(name[-1])}

    def work(number):
        for name in names[::-1] if number else names:
            result = run_job(name, {}, lambda folder, name=name: compute(name, folder), tmp_path / "r", tmp_path / "s")
            assert result["answer"] == int(name[-1])

    in_two_processes(work)
    assert sorted((tmp_path / "done").read_text().split()) == names
    assert sorted(os.listdir(tmp_path / "r")) == [f"{name}.json" for name in names]
    assert os.listdir(tmp_path / "s") == ["locks"]


def test_two_writers_of_one_file_leave_the_whole_of_one(tmp_path):
    path = tmp_path / "file"

    def write(number):
        for _ in range(200):
            with atomic_path(path) as partial:
                partial.write_text(str(number) * 10_000)
            assert path.read_text() in ("0" * 10_000, "1" * 10_000)

    in_two_processes(write)
    assert os.listdir(tmp_path) == ["file"]
