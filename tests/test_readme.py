"""The README's numbers are those of the committed results."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from vae.experiments import VARIANCES, read_results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def runs(name):
    return read_results(name, ROOT / "results/vae")


def number(value, digits):
    return f"{value:.{digits}f}".replace("-", "−")


def spread(values, digits, small=0):
    """Write mean ± standard deviation, which gets `small` more digits where it is below 1."""
    deviation = stdev(values)
    return f"{number(mean(values), digits)} ± {number(deviation, digits if deviation > 1 else digits + small)}"


@pytest.mark.parametrize("variance", VARIANCES.keys() - {"undequantized"})
def test_where_the_scale_comes_from(variance):
    results = runs(f"variance-{variance}")
    bounds = [result["test_elbo"] for result in results]
    used = sorted({result["active_latents"] for result in results})
    span = f"{used[0]} … {used[-1]}" if len(used) > 1 else used[0]
    row = f"{spread(bounds, 0, small=1)} ({len(results)} seeds)"
    assert f"{row} | {span} |" in README.replace("**", "")


@pytest.mark.parametrize(("name", "digits"), [("toy-example", 3), ("toy-iwae", 3), ("toy-pixel", 3)])
def test_the_gap_to_the_true_density(name, digits):
    results = runs(name)
    gaps = [result["truth"] - result["test_log_likelihood"] for result in results]
    assert f"{spread(gaps, digits)} ({len(results)} seeds)" in README


def test_the_bound_of_the_two_dimensional_model_is_that_of_the_notebook():
    notebook = (ROOT / "trainer_VAE.ipynb").read_text()
    for images in ("binarised", "grey"):
        printed = re.search(rf"ELBO, {images} test images +-(\d+\.\d+)", notebook)[1]
        assert re.search(rf"{images}.*\| (\*\*)?−{printed}(\*\*)? \|", README)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bound_in_either_precision(precision):
    assert spread([result["test_elbo"] for result in runs(f"precision-{precision}")], 2) in README


@pytest.mark.parametrize("name", ["mnist-50", "mnist-50-iwae"])
def test_the_deep_models(name):
    (result,) = runs(name)
    log_likelihood = f"{number(-result['test_log_likelihood'], 2)} ± {number(result['standard_error'], 2)}"
    row = next(line for line in README.splitlines() if f"**{log_likelihood}**" in line)
    assert number(result["test_elbo"], 2) in row
    assert f"{result['updates']:,} updates" in row


@pytest.mark.parametrize("what", ["m1", "m2_exact", "m2_topk"])
def test_speed(what):
    bench = json.loads((ROOT / "results/bench.json").read_text())
    for dtype in ("fp32", "bf16"):
        case = {"what": what, "batch": 500, "dtype": dtype, "device": "cpu", "threads": 2}
        (record,) = (r for r in bench["measurements"] if case.items() <= r.items())
        assert f" {record['images_per_second']:,.0f} " in README
