"""Files that are damaged, swapped or cannot be written, and programs that share them: right answers or clear errors."""

import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from experiments import notebook, runner
from experiments.runner import Job, UserError, load_result, run_job
from experiments.ssl import read_results
from vae.checkpoint import atomic_path, load_state
from vae.data import Batches
from vae.datasets import DataNotFoundError, load_mnist
from vae.recipes import M1Recipe
from vae.training import fit

FORK = multiprocessing.get_context("fork")


def train(checkpoint, **options):
    torch.manual_seed(0)
    model, batches = nn.Linear(6, 4), Batches(torch.rand(20, 6), 5, torch.Generator().manual_seed(0))
    fit(lambda x: model(x).square().mean(), model, batches, epochs=3, lr=0.1, checkpoint=checkpoint, **options)


def job(name, compute):
    return Job(name, M1Recipe(), lambda folder: ({"answer": compute(folder), "cpu_minutes": 0}, None))


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    """Of 100 files, each with another bit flipped anywhere, many are refused and none is read as another state."""

    def read(path):
        leaves, structure = tree_flatten(load_state(path))
        return [leaf.tolist() if torch.is_tensor(leaf) else leaf for leaf in leaves], structure

    path, damaged = tmp_path / "run.pt", tmp_path / "damaged.pt"
    train(path)
    whole, content, rng, refused = read(path), path.read_bytes(), random.Random(0), 0
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            assert read(damaged) == whole
        except ValueError as error:
            assert re.search(r"damaged\.pt .*delete it", str(error))
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"settings": {}}', None])
def test_a_result_that_is_damaged_or_changed_places_is_named_and_never_counted(damage, tmp_path):
    run_job(job("m2-100-1", lambda folder: 1), tmp_path, tmp_path / "state")
    path = (tmp_path / "m2-100-1.json").rename(tmp_path / "m2-100-0.json")
    if damage is not None:
        path.write_bytes(damage)
    for read in (lambda: read_results(tmp_path, ["m2"]), lambda: run_job(job("m2-100-0", None), tmp_path, tmp_path)):
        with pytest.raises(UserError, match=r"m2-100-0\.json is not the result of m2-100-0 .*delete it"):
            read()


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


def test_a_disk_that_cannot_be_written_to_keeps_what_is_there_and_the_error_says_what_to_do(disk, offline, monkeypatch):
    folder, spoil = disk
    epochs, figure, picture = [], folder / "figure.png", type("Full", (), {"folder": folder})
    run_job(job("first", lambda folder: 1), folder / "results", folder / "state")
    figure.write_bytes(b"old")

    def evaluate():
        epochs.append(1)
        if len(epochs) == 2:
            spoil()
        return {}

    writes = {
        "run.pt": lambda path: train(path, evaluate=evaluate),
        "results/first.json": lambda path: runner.write_result({"answer": "2" * 9999}, path),
        "new folder/first.json": lambda path: runner.write_result({"answer": "2" * 9999}, path),
        "figure.png": lambda path: notebook.Workspace._write(picture, bytes(9999), path.name),
    }
    for name, write in writes.items():
        path = folder / name
        with pytest.raises(OSError, match=f"{re.escape(str(path))} could not be written and is as it was.*free some"):
            write(path)
    with pytest.raises(OSError, match=r"No space left|Read-only"):
        run_job(job("second", lambda folder: print("0123456789" * 999)), folder / "results", folder / "state")

    def download(root, download):
        Path(root, "train-images-idx3-ubyte.gz").write_bytes(bytes(9999))

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    with pytest.raises(DataNotFoundError, match=r"(?s)(No space left|Read-only).*Copy the four files"):
        load_mnist(folder)
    assert len(load_state(folder / "run.pt")["history"]) == 1
    assert load_result(folder / "results/first.json")["answer"] == 1
    assert figure.read_bytes() == b"old"
    assert not list(folder.rglob("*.part")) + list(folder.rglob("train-images*"))


def in_two_processes(function):
    """Run function(0) and function(1) at once, to their ends."""
    processes = [FORK.Process(target=function, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_two_programs_may_download_mnist_at_once(offline, write_mnist, tmp_path, monkeypatch):
    """Each file arrives in parts in both, and a third program sees none of it before it is whole."""
    source = write_mnist(tmp_path / "source")
    (tmp_path / "data").mkdir()

    def slowly(root, download):
        os.makedirs(f"{root}/MNIST/raw")
        for name in sorted(os.listdir(source)):
            content = (source / name).read_bytes()
            with open(f"{root}/MNIST/raw/{name}", "wb", buffering=0) as file:
                for part in (content[:100], content[100:]):
                    file.write(part)
                    time.sleep(0.05)
                    for seen in (tmp_path / "data/MNIST/raw").glob("*"):
                        assert seen.read_bytes() == (source / seen.name).read_bytes()

    def load(number):
        time.sleep(0.1 * number)
        assert len(load_mnist(tmp_path / "data").test_images) == 3

    monkeypatch.setattr("torchvision.datasets.MNIST", slowly)
    in_two_processes(load)
    assert os.listdir(tmp_path / "data") == ["MNIST"]
    assert sorted(os.listdir(tmp_path / "data/MNIST/raw")) == sorted(os.listdir(source))


def test_two_programs_share_a_folder_and_no_job_is_done_twice(tmp_path):
    """Both find all results, and of every job there is one line in the log of who did it."""
    names = [f"job-{number}" for number in range(8)]

    def compute(folder):
        (folder / "half.pt").write_text("half a run")
        time.sleep(0.02)
        with open(tmp_path / "done", "a") as log:
            log.write(f"{folder.name}\n")
        return folder.name

    def work(number):
        for name in names[::-1] if number else names:
            assert run_job(job(name, compute), tmp_path / "r", tmp_path / "s")[1]["answer"] == name

    in_two_processes(work)
    assert sorted((tmp_path / "done").read_text().split()) == names
    assert sorted(os.listdir(tmp_path / "r")) == [f"{name}.json" for name in names]
    assert sorted(os.listdir(tmp_path / "s")) == [*names, "locks"]
    assert not list(tmp_path.rglob("*.pt"))


def test_two_writers_of_one_file_leave_the_whole_of_one(tmp_path):
    def write(number):
        for _ in range(200):
            with atomic_path(tmp_path / "file") as partial:
                partial.write_text(str(number) * 10_000)
            assert (tmp_path / "file").read_text() in ("0" * 10_000, "1" * 10_000)

    in_two_processes(write)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_broken_file_and_exact_resume():
    command = [sys.executable, "-m", "tests.stress", "--kills", "5"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 kills: no broken file" in done.stdout
