"""Jobs and the files of all programs: skipped, waited for, killed, damaged, swapped, shared, or on a full disk."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import runner
from experiments.methods import METHODS
from experiments.runner import MODEL, Job, UserError, digest, load_result, run_job
from experiments.ssl import read_results
from tests.stress import contents
from vae.checkpoint import load_state
from vae.data import Batches
from vae.datasets import DataNotFoundError, load_mnist
from vae.networks import MLP
from vae.recipes import M1Recipe
from vae.saving import load
from vae.training import fit

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")


def job(compute, path="group/job", model=None, **settings):
    """A job that says what `compute(folder)` returns."""
    result = {"cpu_minutes": 0.5}
    return Job(path, M1Recipe(**settings), lambda folder: (result | {"answer": compute(folder)}, model))


def never(folder):
    raise AssertionError("it is computed again")


def test_a_result_of_these_settings_is_taken_as_it_is_and_one_of_others_is_none(tmp_path):
    first, path = run_job(job(lambda folder: 1), tmp_path, tmp_path / "state")[1], tmp_path / "group/job.json"
    assert json.loads(path.read_text()) == first
    assert (first["name"], first["answer"], first["settings"]["epochs"]) == ("job", 1, 40)
    assert run_job(job(never), tmp_path, tmp_path / "state") == ("group/job", first)
    other = job(lambda folder: 2, epochs=41)
    assert runner.missing_jobs([job(never), other], tmp_path) == [other]
    assert run_job(other, tmp_path, tmp_path / "state")[1]["answer"] == json.loads(path.read_text())["answer"] == 2


def test_what_a_run_resumes_from_goes_and_its_model_and_its_log_stay(tmp_path):
    def compute(folder):
        print("half way")
        (folder / "stage.pt").write_text("half a run")
        assert torch.get_num_threads() == 1
        return 1

    model, folder = MLP(2, (3,), 1), tmp_path / "state/group/job"
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        run_job(job(lambda folder: compute(folder) / 0, model=model), tmp_path, tmp_path / "state")
    assert torch.get_num_threads() == 2
    assert (folder / "stage.pt").read_text() == "half a run"
    run_job(job(compute, model=model), tmp_path, tmp_path / "state")
    assert {path.name for path in folder.iterdir()} == {MODEL, "log"}
    assert (folder / "log").read_text() == "half way\nhalf way\n"
    torch.testing.assert_close(load(folder / MODEL).state_dict(), model.state_dict())


def test_a_look_at_the_processor_draws_no_number():
    runner.has_bf16.cache_clear()
    before = torch.get_rng_state()
    runner.has_bf16()
    assert torch.equal(torch.get_rng_state(), before)


def train(checkpoint, **options):
    torch.manual_seed(0)
    model, batches = nn.Linear(6, 4), Batches(torch.rand(20, 6), 5, torch.Generator().manual_seed(0))
    fit(lambda x: model(x).square().mean(), model, batches, epochs=3, lr=0.1, checkpoint=checkpoint, **options)


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    """Of 100 files, each with another bit flipped anywhere, many are refused and none is read as another state."""
    path, refused, rng = tmp_path / "run.pt", 0, random.Random(0)
    train(path)
    whole, content = contents(tmp_path), path.read_bytes()
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert contents(tmp_path) == whole
        except ValueError as error:
            assert re.search(r"run\.pt .*delete it", str(error))
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"settings": {}}', None])
def test_a_result_that_is_damaged_or_changed_places_is_named_and_never_counted(damage, tmp_path):
    run_job(job(lambda folder: 1, "m2-100-1"), tmp_path, tmp_path / "state")
    path = (tmp_path / "m2-100-1.json").rename(tmp_path / "m2-100-0.json")
    if damage is not None:
        path.write_bytes(damage)
    for read in (lambda: read_results(tmp_path, ["m2"]), lambda: run_job(job(never, "m2-100-0"), tmp_path, tmp_path)):
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
    run_job(job(lambda folder: 1, "first"), folder / "results", folder / "state")
    epochs = []

    def evaluate():
        epochs.append(1)
        if len(epochs) == 2:
            spoil()
        return {}

    writes = {  # what fails in PyTorch, over an old file and in a new folder
        "run.pt": lambda path: train(path, evaluate=evaluate),
        "results/first.json": lambda path: runner.write_result({"answer": "2" * 9999}, path),
        "new folder/first.json": lambda path: runner.write_result({"answer": "2" * 9999}, path),
    }
    for name, write in writes.items():
        path = folder / name
        with pytest.raises(OSError, match=f"{re.escape(str(path))} could not be written and is as it was.*free some"):
            write(path)
    with pytest.raises(OSError, match=r"No space left|Read-only"):
        run_job(job(lambda folder: print("0123456789" * 999), "second"), folder / "results", folder / "state")

    def download(root, download):
        Path(root, "train-images-idx3-ubyte.gz").write_bytes(bytes(9999))

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    with pytest.raises(DataNotFoundError, match=r"(?s)(No space left|Read-only).*Copy the four files"):
        load_mnist(folder)
    assert len(load_state(folder / "run.pt")["history"]) == 1
    assert load_result(folder / "results/first.json")["answer"] == 1
    assert not list(folder.rglob("*.part")) + list(folder.rglob("train-images*"))


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
            assert run_job(job(compute, name), tmp_path / "r", tmp_path / "s")[1]["answer"] == name

    processes = [FORK.Process(target=work, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted((tmp_path / "done").read_text().split()) == names
    assert sorted(os.listdir(tmp_path / "r")) == [f"{name}.json" for name in names]
    assert sorted(os.listdir(tmp_path / "s")) == [*names, "locks"]
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_broken_file_and_exact_resume():
    command = [sys.executable, "-m", "tests.stress", "--kills", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 kills: no broken file" in done.stdout


STATE, RESULTS = "preview/smoke/checkpoints", "preview/smoke/results/ssl/mnist"


def start(folder, *more):
    """Start a comparison of four cells in `folder`, in one thread: M1's last digits depend on how many there are."""
    environment = os.environ | {"VAE_SMOKE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments", "ssl", "--methods", "mlp", "m2", "--labels", "100"]
    return subprocess.Popen(
        [*command, "--splits", "0", "1", *more], cwd=folder, env=environment, start_new_session=True
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What a comparison leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    assert start(folder, "--jobs", "1").wait(300) == 0
    return contents(folder)


@pytest.fixture(params=["processes", pytest.param("dask", marks=pytest.mark.dask)])
def backend(request, monkeypatch, tmp_path_factory):
    """Arguments that choose where it runs: two processes, or two Dask workers, started as docs/cluster.md says."""
    if request.param == "processes":
        yield ["--jobs", "2"]
        return
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("VAE_SMOKE", "1")
    folder = tmp_path_factory.mktemp("dask")
    at = ["--scheduler-file", folder / "scheduler.json", "--no-dashboard"]
    scheduler = ["scheduler", *at, "--host", "127.0.0.1", "--port", "0"]
    worker = ["worker", *at, "--nworkers", "2", "--nthreads", "1", "--local-directory", folder]
    programs = [subprocess.Popen([sys.executable, "-m", "dask", *command], cwd=ROOT) for command in (scheduler, worker)]
    while not (folder / "scheduler.json").exists():
        assert programs[0].poll() is None, "the scheduler ended"
        time.sleep(0.05)
    yield ["--scheduler", json.loads((folder / "scheduler.json").read_text())["address"]]
    for program in reversed(programs):
        program.terminate()
        program.wait(60)


def test_a_comparison_survives_a_kill(backend, reference, tmp_path):
    """Of the process, not of its workers, in the middle of training; nothing that is finished is repeated."""
    process, deadline = start(tmp_path, *backend), time.monotonic() + 300
    while not any(tmp_path.glob(f"{STATE}/ssl/mnist/m2-100-*/frozen.pt")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / RESULTS).glob("*.json")}
    assert start(tmp_path, *backend).wait(300) == 0
    left = contents(tmp_path)
    assert left.keys() == reference.keys()
    assert not [path for path in left if left[path] != reference[path]]
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    expected = {f"{RESULTS}/{method}-100-{split}.json" for method in ("mlp", "m2") for split in (0, 1)}
    expected |= {f"{STATE}/ssl/mnist/{method}-100-{split}/{MODEL}" for method in ("mlp", "m2") for split in (0, 1)}
    m1 = digest(METHODS["m2"].smoke().m1)
    assert left.keys() == expected | {f"{STATE}/ssl/mnist/m1/{m1}/M1.pt"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"n_workers": 1, "threads_per_worker": 2}, "one thread"), ({"n_workers": 0}, "at least")],
)
@pytest.mark.dask
def test_workers_that_cannot_do_the_jobs_are_refused_soon(options, complaint, monkeypatch):
    import distributed  # which need not be there otherwise

    monkeypatch.setattr(runner, "TIMEOUT", 1)
    with (
        distributed.LocalCluster(**options, processes=False, dashboard_address=None) as cluster,
        pytest.raises(UserError, match=complaint),
    ):
        runner.connect(cluster.scheduler_address)
