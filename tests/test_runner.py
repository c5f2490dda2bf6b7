"""Jobs: skipped, repeated, waited for; the command on processes and on a real Dask cluster, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch
from torch import nn

from experiments import runner
from experiments.methods import METHODS
from experiments.runner import Job, UserError, digest, run_job, run_jobs
from vae.checkpoint import load_model, load_state
from vae.recipes import M1Recipe

ROOT = Path(__file__).parent.parent


def job(compute, name="job", model=None, **settings):
    """A job that says what `compute(folder)` returns."""
    return Job(
        f"group/{name}", M1Recipe(**settings), lambda folder: ({"answer": compute(folder), "cpu_minutes": 0.5}, model)
    )


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

    model, threads, folder = nn.Linear(2, 3), torch.get_num_threads(), tmp_path / "state/group/job"
    with pytest.raises(ZeroDivisionError):
        run_job(job(lambda folder: compute(folder) / 0, model=model), tmp_path, tmp_path / "state")
    assert torch.get_num_threads() == threads
    assert (folder / "stage.pt").read_text() == "half a run"
    run_job(job(compute, model=model), tmp_path, tmp_path / "state")
    assert {path.name for path in folder.iterdir()} == {"model.pt", "log"}
    assert (folder / "log").read_text() == "half way\nhalf way\n"
    torch.testing.assert_close(load_model(nn.Linear(2, 3), folder / "model.pt").state_dict(), model.state_dict())


def test_jobs_that_are_there_are_skipped_and_the_others_told(tmp_path, capsys):
    jobs = [job(lambda folder: folder.name, f"job-{number}") for number in range(3)]
    run_job(jobs[1], tmp_path, tmp_path / "state")
    jobs[1] = job(never, "job-1")
    for _ in range(2):
        run_jobs(jobs, joblib.Parallel(1, return_as="generator"), tmp_path, tmp_path / "state")
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[-1]] == ["1 of 3 results are there, 2 to go", "3 of 3 results are there, 0 to go"]
    assert [line.partition(":")[0] for line in lines[1:-1]] == ["[1/2] group/job-0", "[2/2] group/job-2"]
    assert {path.name for path in (tmp_path / "group").iterdir()} == {f"job-{number}.json" for number in range(3)}


STATE, RESULTS = "preview/smoke/checkpoints", "preview/smoke/results/ssl/mnist"


def start(folder, *more):
    """Start a comparison of four cells in `folder`."""
    environment = os.environ | {"VAE_SMOKE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments", "ssl", "--methods", "m1knn", "m2", "--labels", "100"]
    return subprocess.Popen([*command, "--splits", "2", *more], cwd=folder, env=environment, start_new_session=True)


def left(folder):
    """What the results in `folder` say, all but the time they took, and the models beside them."""
    results = {path.stem: json.loads(path.read_text()) | {"cpu_minutes": 0} for path in (folder / RESULTS).iterdir()}
    return results, {str(path.relative_to(folder / STATE)): load_state(path)["model"] for path in folder.rglob("*.pt")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What a comparison leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    assert start(folder, "--jobs", "2").wait(300) == 0
    return left(folder)


@pytest.fixture(params=["processes", "dask"])
def backend(request, monkeypatch):
    """Arguments that choose where it runs: two processes, or a Dask cluster with two worker processes."""
    if request.param == "processes":
        yield ["--jobs", "2"]
        return
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VAE_SMOKE", "1")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        yield ["--scheduler", cluster.scheduler_address]


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
    results, models = left(tmp_path)
    assert results == reference[0]
    torch.testing.assert_close(models, reference[1], rtol=0, atol=0)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert results.keys() == {f"{method}-100-{split}" for method in ("m1knn", "m2") for split in (0, 1)}
    names = (f"m1/{digest(METHODS['m2'].smoke().m1)}/M1", "m2-100-0/model", "m2-100-1/model")
    assert models.keys() == {f"ssl/mnist/{name}.pt" for name in names}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"n_workers": 1, "threads_per_worker": 2}, "one thread"), ({"n_workers": 0}, "at least")],
)
def test_workers_that_cannot_do_the_jobs_are_refused_soon(options, complaint, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "TIMEOUT", 1)
    with (
        distributed.LocalCluster(**options, processes=False, dashboard_address=None) as cluster,
        pytest.raises(UserError, match=complaint),
    ):
        runner.connect(cluster.scheduler_address)
