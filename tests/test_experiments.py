"""The runs of M1: what their files say, what a kill leaves, and what happens when one diverges."""

import json
import math
from pathlib import Path

import pytest
import torch

from vae import experiments
from vae.experiments import RESULT_KEYS, RUNS, main, measure, read_results, run, settings_of, train
from vae.jobs import load_result

RESULTS = Path(__file__).parent.parent / "results/vae"
SMALL = {"hidden_dims": [20], "z_dim": 2}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch):
    """A function that makes a run small and returns its name."""

    def make(name, **changes):
        monkeypatch.setitem(RUNS, name, RUNS[name] | SMALL | changes)
        return name

    return make


@pytest.mark.parametrize("name", ["latents-3", "toy-iwae-1", "variance-limited-0", "variance-continuous-0"])
def test_a_run_says_how_good_its_model_is(small, name, tmp_path):
    result = run(small(name), tmp_path / "results", tmp_path / "state", smoke=True)
    assert result == json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert result.keys() >= RESULT_KEYS
    assert result["diverged"] is None
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["settings"] == settings_of(name, smoke=True)
    [[_, valid, test]] = result["curve"]
    assert abs(valid - test) < 0.2 * abs(test)
    assert abs(result["test_elbo"] - test) < 0.05 * abs(test)  # another draw of the latents
    assert result["test_log_likelihood"] > test - 5 * result["standard_error"]
    parts = result["terms"]
    assert result["test_elbo"] == pytest.approx(
        parts["log_likelihood"] - parts["mutual_information"] - parts["kl_to_prior"], abs=0.01
    )


def test_a_finished_run_is_found_and_one_of_other_settings_is_not(small, tmp_path, monkeypatch):
    name = small("toy-example-0")
    first = run(name, tmp_path, tmp_path / "state", smoke=True)
    monkeypatch.setattr(experiments, "measure", None)  # training would fail
    assert run(name, tmp_path, tmp_path / "state", smoke=True) == first
    with pytest.raises(TypeError):
        run(small("toy-example-0", lr=1e-4), tmp_path, tmp_path / "state", smoke=True)


def test_a_run_can_go_on_from_another(small, tmp_path):
    """The start is trained once; the weighted bound of 50 samples takes over from its parameters."""
    small("mnist-50")
    name = small("mnist-50-iwae", iwae_samples=5, lr=1e-8)
    started, _, _ = train("mnist-50", tmp_path, smoke=True)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "mnist-50").iterdir()}
    vae, history, _ = train(name, tmp_path, smoke=True)
    assert all(path.stat().st_mtime_ns == changed for path, changed in files.items())
    for before, after in zip(started.parameters(), vae.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    assert len(history) == 1


def test_a_run_that_diverges_says_so(small, tmp_path):
    name = small("variance-free-0", lr=1e6)
    result = run(name, tmp_path, tmp_path / "state", smoke=True)
    assert "not finite" in result["diverged"] or "became" in result["diverged"]
    assert "test_elbo" not in result
    assert result["curve"] == []


def test_toy_runs_know_the_truth(small, tmp_path):
    result = measure(small("toy-example-0"), tmp_path, smoke=True)
    assert abs(result["truth"] + 2.79) < 0.05
    assert result["test_log_likelihood"] < result["truth"]


def test_every_run_can_be_built():
    for name, settings in RUNS.items():
        vae = experiments.build(settings, 784)
        assert vae.encoder.z_dim == settings["z_dim"], name
    assert {f"latents-{n}" for n in experiments.LATENTS} < RUNS.keys()
    assert {f"variance-{name}-4" for name in experiments.VARIANCES} < RUNS.keys()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_of_todays_settings(path):
    result = load_result(path, RESULT_KEYS)
    assert result["settings"] == settings_of(path.stem)
    assert result["name"] == path.stem
    if result["diverged"] is None:
        assert math.isfinite(result["test_elbo"])
        assert result["test_elbo"] < result["test_log_likelihood"] + 5 * result["standard_error"]


def test_the_command_runs_what_is_named_and_skips_what_is_there(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "SMOKE", True)
    monkeypatch.setattr(experiments, "RUNS", {name: RUNS[name] | SMALL for name in ("toy-iwae-0", "toy-iwae-1")})
    for name in ("toy-iwae-1", "toy-iwae", "toy-iwae"):
        main([name, "--jobs", "1"])
    said = [line for line in capsys.readouterr().out.splitlines() if line[0].isdigit()]
    assert said == [
        f"{there} results are there, {missing} to go"
        for there, missing in (("0 of 1", 1), ("1 of 2", 1), ("2 of 2", 0))
    ]
    assert [r["seed"] for r in read_results("toy-iwae", tmp_path / "preview/smoke/results/vae")] == [0, 1]
    with pytest.raises(SystemExit):
        main(["toys"])


def test_a_missing_result_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"\['mnist-50'\].*python -m vae.experiments mnist-50"):
        read_results("mnist-50", tmp_path)
