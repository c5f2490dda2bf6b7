"""Jobs and the files of all programs: skipped, waited for, killed, damaged, swapped, shared, or on a full disk."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from experiments import UserError, runner
from experiments.runner import MODEL, Job, load_result, run_job
from experiments.ssl import read_results
from vae.checkpoint import load_state
from vae.data import Batches
from vae.networks import MLP
from vae.recipes import M1Recipe
from vae.saving import load
from vae.training import Recipe, fit

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")


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
    return path.read_bytes()  # a notebook or a figure


def contents(folder):
    """Read every file that a program would read."""
    files = (path for path in folder.rglob("*") if path.suffix in (".json", ".pt", ".safetensors", ".png", ".ipynb"))
    return {str(path.relative_to(folder)): read(path) for path in files if not path.name.startswith(".")}


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


def train(folder, epochs=3, width=6, **options):
    """Train for four steps an epoch; the file takes 300 bytes or, of another width, 3 MB."""
    torch.manual_seed(0)
    model, batches = nn.Linear(6, width), Batches(torch.rand(20, 6), 5, torch.Generator().manual_seed(0))
    fit(lambda x: model(x).square().mean(), model, batches, Recipe(), epochs=epochs, folder=folder, **options)


def test_a_flipped_bit_in_a_checkpoint_is_refused_or_changes_nothing(tmp_path):
    """Of 100 files, each with another bit flipped anywhere, many are refused and none is read as another state."""
    path, refused, rng = tmp_path / "run.pt", 0, random.Random(0)
    train(tmp_path)
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


def test_a_disk_that_cannot_be_written_to_keeps_what_is_there_and_the_error_says_what_to_do(disk):
    folder, spoil = disk
    run_job(job(lambda folder: 1, "first"), folder / "results", folder / "state")
    epochs = []

    def evaluate():
        epochs.append(1)
        if len(epochs) == 3:  # the first is before training
            spoil()
        return {}

    for path, write in (
        (folder / "run.pt", lambda: train(folder, evaluate=evaluate)),
        (folder / "new/first.json", lambda: runner.write_result({"answer": "2" * 9999}, folder / "new/first.json")),
    ):
        with pytest.raises(OSError, match=f"{re.escape(str(path))} could not be written and is as it was.*free some"):
            write()
    assert len(load_state(folder / "run.pt")["history"]) == 1
    assert load_result(folder / "results/first.json")["answer"] == 1
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("backend", ["processes", pytest.param("dask", marks=pytest.mark.dask)])
def test_jobs_run_in_other_processes_or_on_dask_and_none_that_is_there_again(backend, tmp_path, capsys):
    jobs, address = [job(lambda folder: os.getpid(), f"job-{number}") for number in range(4)], None
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            import distributed  # which need not be there otherwise

            cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            address = stack.enter_context(cluster).scheduler_address
        parallel = stack.enter_context(runner.workers(2, address))
        for some in (jobs[:2], jobs, jobs):
            runner.run_jobs(some, parallel, tmp_path / "results", tmp_path / "state")
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith("to go")]
    assert [line[:6] for line in told] == ["0 of 2", "2 of 4", "4 of 4"]
    assert os.getpid() not in {load_result(path)["answer"] for path in (tmp_path / "results").glob("*.json")}
    assert len(os.listdir(tmp_path / "results")) == 4


@pytest.mark.parametrize("options", [{"n_workers": 1, "threads_per_worker": 2}, {"n_workers": 0}])
@pytest.mark.dask
def test_workers_that_cannot_do_the_jobs_are_refused_before_training(options):
    import distributed

    with (
        distributed.LocalCluster(**options, processes=False, dashboard_address=None) as cluster,
        pytest.raises(UserError, match="one thread each"),
        runner.workers(1, cluster.scheduler_address),
    ):
        pass
