"""The sweep: on this machine's processes and on a real Dask cluster, killed and resumed, and what it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vae import stages, sweep
from vae.jobs import load_result
from vae.methods import METHODS, settings_of
from vae.sweep import Cell, run_cell

ROOT = Path(__file__).parent.parent
ARGUMENTS = ["--methods", "m1knn", "m2", "--labels", "100", "--splits", "2"]
CELLS = {f"{method}-100-{split}" for method in ("m1knn", "m2") for split in (0, 1)}


class Killed(BaseException):
    """Stands for a kill: no handler may stop it."""


def in_this_process(jobs):
    """Stand in for joblib.Parallel."""
    return (function(*arguments, **keywords) for function, arguments, keywords in jobs)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(folder):
    """What the results in `folder` say, all but the time they took."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*")}
    for result in results.values():
        del result["cpu_minutes"]
    return results


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_something_and_says_how(m1, method, tmp_path, threads):
    result = run_cell(Cell(method, 1000, 3), m1, tmp_path, tmp_path / "state", smoke=True)
    assert (result["method"], result["labels"], result["split"], result["seed"]) == (method, 1000, 3, 3)
    assert 0 < result["test_error"] < 75  # guessing is wrong in 90 %
    assert 0 < result["valid_error"] < 75
    assert result["epochs"] == sum(result["settings"].get("epochs", {}).values())
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(result)) == result


def test_results_are_seeded_by_their_split(m1, tmp_path, threads):
    first, again = (run_cell(Cell("m1knn", 100, 0), m1, tmp_path / name, tmp_path, smoke=True) for name in "ab")
    other = run_cell(Cell("m1knn", 100, 1), m1, tmp_path / "a", tmp_path, smoke=True)
    assert first["test_error"] == again["test_error"] != other["test_error"]


@pytest.mark.parametrize(
    ("method", "stages_before", "last"), [("m2", 2, "released"), ("m1m2", 3, "joint"), ("m1m2_skips", 4, "joint")]
)
def test_a_killed_cell_resumes_after_its_last_epoch(method, stages_before, last, m1, tmp_path, threads, monkeypatch):
    """Killed in its last stage, a cell trains that stage only, and ends as if nothing had happened."""
    steps, fit, cell = [], stages.fit, Cell(method, 100, 0)

    def killed_once(loss_fn, model, batches, *, name, **settings):
        def counted(batch):
            steps.append(name)
            if len(steps) == stages_before * len(batches) + 3:
                raise Killed
            return loss_fn(batch)

        return fit(counted, model, batches, name=name, **settings)

    reference = run_cell(cell, m1, tmp_path / "reference", tmp_path / "other state", smoke=True)
    monkeypatch.setattr(stages, "fit", killed_once)
    with pytest.raises(Killed):
        run_cell(cell, m1, tmp_path / "killed", tmp_path / "state", smoke=True)
    del steps[:-3]
    assert set(steps) == {last}
    resumed = run_cell(cell, m1, tmp_path / "killed", tmp_path / "state", smoke=True)
    assert set(steps) == {last}
    assert len(steps) == 3 + resumed["updates"] // (stages_before + 1)
    assert resumed | {"cpu_minutes": 0} == reference | {"cpu_minutes": 0}


def test_what_is_there_is_skipped_and_nothing_but_results_is_left(m1, tmp_path, threads, capsys):
    cells = [Cell("m1knn", 100, split) for split in range(3)]
    results, state = tmp_path / "results", tmp_path / "state"
    kept = run_cell(cells[1], m1, results, state, smoke=True) | {"test_error": "kept as it is"}
    (results / "m1knn-100-1.json").write_text(json.dumps(kept))
    sweep.sweep(cells, m1, results, state, in_this_process, smoke=True)
    assert sorted(os.listdir(results)) == [f"{cell}.json" for cell in cells]
    assert json.loads((results / "m1knn-100-1.json").read_text()) == kept
    assert os.listdir(state) == ["locks"]
    assert "1 of 3 results are there, 2 to go" in capsys.readouterr().out


def test_who_waits_for_a_cell_finds_its_result_and_does_not_train_again(m1, tmp_path, threads, monkeypatch):
    first = run_cell(Cell("m1knn", 100, 0), m1, tmp_path / "results", tmp_path / "state", smoke=True)
    monkeypatch.setattr(sweep, "_result", None)  # training would fail
    assert run_cell(Cell("m1knn", 100, 0), m1, tmp_path / "results", tmp_path / "state", smoke=True) == first


def test_a_result_of_other_settings_is_none(m1, tmp_path, threads):
    cell, path = Cell("m1svm", 100, 0), tmp_path / "m1svm-100-0.json"
    result = run_cell(cell, m1, tmp_path, tmp_path / "state", smoke=True)
    assert sweep.missing_cells([cell], tmp_path, smoke=True) == []
    path.write_text(json.dumps(result | {"settings": {"C": 2}}))
    assert sweep.missing_cells([cell], tmp_path, smoke=True) == [cell]
    assert run_cell(cell, m1, tmp_path, tmp_path / "state", smoke=True) == json.loads(path.read_text()) == result


def test_committed_results_have_the_settings_of_today():
    for path in (ROOT / "results/ssl").glob("*.json"):
        result = load_result(path, sweep.RESULT_KEYS)
        assert result["settings"] == settings_of(result["method"]), path
        assert path.stem == str(Cell(result["method"], result["labels"], result["split"]))


def test_time_left_counts_what_each_method_costs():
    cells = [Cell(method, labels, 0) for method in ("mlp", "m2") for labels in (100, 600, 1000)]
    finished = {cells[0]: 1.0, cells[3]: 10.0}
    assert sweep.minutes_left(finished, cells, elapsed=5.5) == pytest.approx(11)  # two cells of 1 and two of 10
    assert sweep.minutes_left({cells[0]: 1.0}, cells, elapsed=1) == pytest.approx(5)
    assert sweep.minutes_left(dict.fromkeys(cells, 1.0), cells, elapsed=3) == 0


STATE, RESULTS = "preview/smoke/checkpoints/sweep", "preview/smoke/results/ssl"


def start(folder, m1_checkpoint, *more):
    """Start a sweep in `folder`, where M1 has been trained already."""
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    shutil.copy(m1_checkpoint, folder / STATE)
    environment = os.environ | {"VAE_SMOKE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vae.sweep", *ARGUMENTS, *more]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def kill_when(process, condition):
    """Kill -9 the process, but not its workers, as soon as `condition()` holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def reference(m1_checkpoint, tmp_path_factory):
    """The results of a sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    assert start(folder, m1_checkpoint, "--jobs", "2").wait(300) == 0
    return numbers(folder / RESULTS)


@pytest.fixture(params=["processes", "dask"])
def backend(request, monkeypatch):
    """Arguments that choose where the sweep runs: two processes, or a Dask cluster with two worker processes."""
    if request.param == "processes":
        yield ["--jobs", "2"]
        return
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        yield ["--scheduler", cluster.scheduler_address]


def test_a_sweep_survives_a_kill(backend, reference, m1_checkpoint, tmp_path):
    results, state = tmp_path / RESULTS, tmp_path / STATE
    kill_when(start(tmp_path, m1_checkpoint, *backend), lambda: any(state.glob("m2-100-*/stopped.pt")))
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert start(tmp_path, m1_checkpoint, *backend).wait(300) == 0
    assert numbers(results) == reference
    assert reference.keys() == CELLS
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())  # nothing was repeated
    assert sorted(os.listdir(state)) == ["locks", "m1.pt"]


def test_workers_with_several_threads_are_refused():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, pytest.raises(SystemExit, match="one thread each"):
        sweep.connect(cluster.scheduler_address)


def test_a_scheduler_without_workers_is_no_silent_wait(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweep, "WORKERS_TIMEOUT", 1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(SystemExit, match="start at least one"),
    ):
        sweep.connect(cluster.scheduler_address)
