"""The runs of M1: what their results say, on which data, what stays, and what happens when one diverges."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from torch.testing import assert_close

from experiments import UserError, m1
from experiments.m1 import RUNS, jobs, read_results
from experiments.runner import MODEL, load_result, plain, run_job, shortened
from vae import recipes
from vae.evaluation import active_latents
from vae.saving import load

COMMITTED = sorted((Path(__file__).parent.parent / "results/m1").glob("*.json"))


@pytest.fixture
def run(add_data, stripes, tmp_path, monkeypatch):
    """A function that makes a run small, runs it on `stripes` or the toy density, and returns its result."""
    add_data(replace(stripes, name="mnist"))

    def run(name, epochs=1, recipe=None, **changes):
        recipe = replace(shortened(RUNS[name].recipe, epochs), **recipe or {})
        small = {"hidden_dims": (20,), "z_dim": min(RUNS[name].z_dim, 3), "batch_size": 40, "recipe": recipe}
        monkeypatch.setitem(RUNS, name, replace(RUNS[name].smoke(), **small | changes))
        return run_job(*jobs([name]), tmp_path, tmp_path / "state")[1]

    return run


@pytest.mark.parametrize("name", ["latents-3", "toy-iwae-1", "variance-limited-0", "variance-continuous-0"])
def test_a_run_says_how_good_its_model_is_and_keeps_it(run, name, stripes, tmp_path):
    result, config, toy, folder = run(name, epochs=3, z_dim=4), RUNS[name], "toy" in name, tmp_path / f"state/m1/{name}"
    assert result == json.loads((tmp_path / f"m1/{name}.json").read_text())
    expected = {"name": name, "diverged": None, "seed": config.seed, "data": config.data, "settings": plain(config)}
    expected["data_checksum"] = None if toy else stripes.checksum
    expected["updates"] = 3 * ((5000 if toy else 240) // 40)
    assert {key: result[key] for key in expected} == expected
    _, _, (_, valid, test) = result["curve"]
    assert abs(valid - test) < 0.2 * abs(test) + 0.5
    assert abs(result["test_elbo"] - test) < 0.05 * abs(test) + 0.5  # another draw of the latents
    assert result["test_log_likelihood"] > test - 5 * result["standard_error"]
    if toy:
        assert abs(result["truth"] + 2.79) < 0.05
        assert result["test_log_likelihood"] < result["truth"] + 0.05
    _, _, test_rows, _ = m1._data(config)
    assert len(active_latents(load(folder / MODEL), test_rows)) == result["active_latents"]
    assert {path.name for path in folder.iterdir()} == {MODEL, "log"}


def test_its_bounds_are_of_validation_and_of_test_images(run, add_data, stripes):
    """White images, of which alone M1 has seen any, are likely; black ones are not."""
    white = {f"{part}_images": stripes.part(part)[0] * 0 + 1 for part in ("train", "valid")}
    add_data(replace(stripes, name="mnist", test_images=stripes.test_images * 0, **white))
    result = run("latents-3", epochs=20)
    loss, valid, test = result["curve"][-1]
    assert valid > -loss - 2
    assert test < -loss - 12
    assert result["test_elbo"] < valid - 10
    assert result["test_log_likelihood"] < valid - 10


@pytest.mark.parametrize("left", [True, False])
def test_a_run_goes_on_from_the_same_other_whether_that_one_was_run_before_or_not(left, run, tmp_path):
    """The weighted bound takes over from its parameters."""
    first, changes = "mnist-50-0", {"recipe": {"iwae_samples": 5, "lr": 1e-8}}
    before, result = run(first, epochs=3), tmp_path / f"m1/{first}.json"
    model = tmp_path / f"state/m1/{first}" / MODEL
    started = load(model).state_dict()
    if not left:
        result.unlink(), model.unlink()
    run("mnist-50-iwae-0", **changes)
    assert_close(load(tmp_path / "state/m1/mnist-50-iwae-0" / MODEL).state_dict(), started, rtol=0, atol=1e-5)
    assert run(first, epochs=3) | {"cpu_minutes": 0} == before | {"cpu_minutes": 0}


def test_a_run_that_diverges_says_so_and_keeps_no_model(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise FloatingPointError("it became nan")

    monkeypatch.setattr(recipes, "fit", fail)
    result = run("mnist-50-0")
    assert (result["diverged"], result["curve"]) == ("it became nan", [])
    assert "test_elbo" not in result
    assert {path.name for path in (tmp_path / "state/m1/mnist-50-0").iterdir()} == {"log"}


def test_a_missing_result_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"\['latents-3'\].*python -m experiments m1 latents-3"):
        read_results("latents-3", tmp_path)


def test_committed_results_are_of_todays_settings():
    for result in map(load_result, COMMITTED):
        assert result["settings"] == plain(RUNS[result["name"]]), result["name"]
        assert result["data"] == RUNS[result["name"]].data and result.keys() >= {"versions", "updates"}
        assert result["diverged"] or math.isfinite(result["test_elbo"])
        assert result["diverged"] or result["test_elbo"] < result["test_log_likelihood"] + 5 * result["standard_error"]
