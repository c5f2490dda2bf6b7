"""The tables and numbers of README and pages are those of the committed results, and the figure's, too."""

import json
import re
from pathlib import Path
from statistics import mean, median, stdev

import pytest

from experiments import table
from experiments.bench.report import minutes_to
from experiments.m1 import VARIANCES, read_results
from experiments.methods import METHODS, MORE, UNDONE
from experiments.ssl import read_results as read_cells
from experiments.table import BEGIN, END, NAMES, PAPER, VARIANT_NAMES, markdown, replace_table, variants_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in ROOT.glob("docs/*.md")}
MARKERS = {"few-labels": ("table", "variants", "fashion"), "trials": ("trials",)}


@pytest.fixture
def folder(tmp_path):
    """Results: M2 at 100 labels with errors of 8, 10 and 12 %, at 1,000 with 5 %; the MLP at both; two variants."""
    cells = {("m2", 100, 0): 8, ("m2", 100, 2): 12, ("m2", 100, 1): 10, ("m2", 1000, 0): 5, ("mlp", 1000, 0): 9}
    cells |= {
        ("mlp", 100, 0): 25.5,
        ("m2_one_layer", 100, 0): 20,
        ("m2_one_layer", 100, 1): 24,
        ("m2_naive", 600, 0): 9,
    }
    for (method, labels, split), error in cells.items():
        result = {"name": f"{method}-{labels}-{split}", "method": method, "labels": labels, "split": split}
        result |= {"test_error": error, "valid_error": 0, "cpu_minutes": split + 1, "settings": {}}
        (tmp_path / f"{result['name']}.json").write_text(json.dumps(result | {"updates": 2000 * (method == "m2")}))
    return tmp_path


def test_tables_hold_mean_and_standard_deviation_and_number_of_splits(folder):
    assert markdown(read_cells(folder, NAMES)).splitlines() == [
        "| test error (%) | 100 labels | 1,000 labels | CPU minutes, updates |",
        "| --- | --- | --- | --- |",
        "| labels only: MLP | **25.50** (1) | **9.00** (1) | 1.0 |",
        "| – the paper | 25.81 | 10.70 | |",
        "| M2 | **10.00 ± 2.00** (3) | **5.00** (1) | 2.0, 2,000 |",
        "| – the paper | 11.97 ± 1.71 | 3.60 ± 0.56 | |",
        "| SDGM: a VAE of two stochastic layers, with skips (Maaløe et al. 2016) | 1.32 ± 0.07 | – | |",
        "| ADGM: with an auxiliary variable instead (the same paper) | 0.96 ± 0.02 | – | |",
        "| virtual adversarial training (Miyato et al. 2018) | 1.36 | – | |",
        "| ladder network (Rasmus et al. 2015) | 1.06 | – | |",
    ]
    assert variants_markdown(read_cells(folder, VARIANT_NAMES)).splitlines()[2:] == [
        "| as it is | **10.00 ± 2.00** (3) | 10.00 ± 2.00 | 2.0 |",  # and beside the variants, on the same draws
        f"| {VARIANT_NAMES['m2_one_layer']} | **22.00 ± 2.83** (2) | 9.00 ± 1.41 | 1.5 |",
    ]
    without_m2 = read_cells(folder, ["m2_one_layer", "m2_naive"])  # the second of another number of labels
    assert [line.split(" | ")[2] for line in variants_markdown(without_m2).splitlines()[2:]] == ["–"]
    assert len(table.trials_markdown({"m1m2_short": {600: []}}).splitlines()) == 2


def test_every_method_and_every_variant_has_a_name():
    assert NAMES.keys() == METHODS.keys() | {"m2_longer", "m1m2_relu", "m1m2_joint_longer"}
    assert table.LINE_COLORS.keys() <= table.LABELS.keys() <= METHODS.keys()
    assert VARIANT_NAMES.keys() | {"m1m2_relu", "m1m2_joint_longer"} == {"m2", *MORE, *UNDONE}


def test_the_command_writes_the_tables_between_their_markers_and_the_figure_of_the_same_numbers(
    folder, tmp_path, monkeypatch
):
    docs, images, results = tmp_path / "docs", tmp_path / "_images", read_cells(folder, NAMES)
    docs.mkdir()
    for page, names in MARKERS.items():
        old = [line for name in names for line in (BEGIN.format(name), "old", END.format(name))]
        (docs / f"{page}.md").write_text("\n".join(["before", *old, "after"]))
    monkeypatch.setattr(table, "RESULTS", folder)
    for _ in range(2):
        table.write(docs, images)
        for page, by_marker in table.tables(folder).items():
            lines = [line for name, text in by_marker.items() for line in (BEGIN.format(name), text, END.format(name))]
            assert (docs / f"{page}.md").read_text() == "\n".join(["before", *lines, "after"])
    assert table.tables(folder)["few-labels"]["table"] == markdown(results)
    assert (images / "m2-error-vs-labels.png").read_bytes().startswith(b"\x89PNG")
    drawn = table.errors_against_labels(results).axes[0].containers
    lines = {container.get_label(): container[0].get_xydata().tolist() for container in drawn}
    bars = {container.get_label(): container[2][0].get_segments()[0].tolist() for container in drawn}
    assert (lines["M2"], bars["M2"]) == ([[100, 10], [1000, 5]], [[100, 8], [100, 12]])
    paper = [[labels, values[0]] for labels, values in PAPER["m2"].items()]
    assert paper in [container[0].get_xydata().tolist() for container in drawn]
    begin, end = BEGIN.format("table"), END.format("table")
    for text in ("", begin, end, f"{end}{begin}", f"{begin}{end}{begin}{end}"):
        with pytest.raises(ValueError, match="once each"):
            replace_table(text, "table", "| new |")


def test_the_tables_are_those_of_the_committed_results_and_the_readme_says_the_same():
    folder = ROOT / "results/ssl/mnist"
    for page, by_marker in table.tables(folder).items():
        assert table.with_tables(PAGES[page], by_marker) == PAGES[page]
    results = read_cells(folder, NAMES)
    for method, name in (("m2_longer", "M2"), ("m1m2", "M1+M2")):
        assert f"{name} **{table._format(table.test_errors(results[method])[100])}**" in README


def runs(name):
    return read_results(name, ROOT / "results/m1")


def number(value, digits):
    return f"{value:.{digits}f}".replace("-", "−")


def spread(values, digits, small=0):
    """Write mean ± standard deviation, which gets `small` more digits where it is below 1."""
    deviation = stdev(values)
    return f"{number(mean(values), digits)} ± {number(deviation, digits if deviation > 1 else digits + small)}"


@pytest.mark.parametrize("variance", sorted(VARIANCES.keys() - {"undequantized"}))
def test_where_the_scale_comes_from(variance):
    results = runs(f"variance-{variance}")
    used = sorted({result["active_latents"] for result in results})
    row = f"{spread([result['test_elbo'] for result in results], 0, small=1)} ({len(results)} seeds)"
    assert f"{row} | {f'{used[0]} … {used[-1]}' if len(used) > 1 else used[0]} |" in PAGES["decoder-variance"].replace(
        "**", ""
    )
    assert variance not in ("free", "optimal") or spread([r["test_elbo"] for r in results], 0) in README


def test_the_gap_to_the_true_density_and_the_bound_in_either_precision():
    for name in ("toy-example", "toy-iwae", "toy-pixel"):
        gaps = [result["truth"] - result["test_log_likelihood"] for result in runs(name)]
        assert f"{spread(gaps, 3)} ({len(gaps)} seeds)" in PAGES["density"]
    assert f"**{spread([r['truth'] - r['test_log_likelihood'] for r in runs('toy-iwae')], 3)}**" in README
    for name in ("precision-fp32", "precision-bf16"):
        assert spread([result["test_elbo"] for result in runs(name)], 2) in PAGES["speed"]


@pytest.mark.parametrize("images", ["binari[sz]ed", "gr[ae]y"])  # in either spelling
def test_the_bound_of_the_two_dimensional_model_is_that_of_the_notebook(images):
    printed = re.search(rf"ELBO, {images} test images +-(\d+\.\d+)", (ROOT / "trainer_VAE.ipynb").read_text())[1]
    assert re.search(rf"{images}.*\| (\*\*)?−{printed}(\*\*)? \|", PAGES["density"])


@pytest.mark.parametrize("name", ["mnist-50", "mnist-50-iwae"])
def test_the_deep_models(name):
    results = runs(name)
    log_likelihood = f"**{spread([-result['test_log_likelihood'] for result in results], 2)}**"
    row = next(line for line in PAGES["density"].splitlines() if log_likelihood in line)
    assert name == "mnist-50" or log_likelihood in README
    assert spread([result["test_elbo"] for result in results], 2) in row
    assert f"({len(results)} seeds) | {results[0]['updates']:,} updates" in row
    assert all(f"standard error of {result['standard_error']:.2f}" in README for result in results)


@pytest.mark.parametrize("what", ["m1", "m2_exact", "m2_topk"])
def test_speed(what):
    bench, beyond = json.loads((ROOT / "results/bench.json").read_text()), []
    for dtype in ("fp32", "bf16"):
        case = {"what": what, "batch": 500, "dtype": dtype, "device": "cpu", "threads": 2}
        (record,) = (r for r in bench["measurements"] if case.items() <= r.items())
        rate = f" {record['images_per_second']:,.0f} "
        assert rate in PAGES["speed"] and (what == "m2_topk" or rate in README.replace(";", " "))
        step = 1000 * record["batch"] / record["images_per_second"]  # ms
        beyond.append(f"{step * (1 - record['fraction_of_limit']):.1f}")
    assert re.search(rf"{beyond[0]}( ms in float32)? and {beyond[1]}( in bfloat16)? for ", PAGES["speed"])


def test_how_cost_grows():
    scaling = json.loads((ROOT / "results/bench-scaling.json").read_text())["scaling"]
    for record in (record for records in scaling.values() for record in records):
        seconds = f"{record['cpu_seconds_per_1000_images']:#.2g}".rstrip(".")
        assert f"| {seconds} | {record['peak_mib']:,.0f} |" in PAGES["scale"]


def test_the_time_to_an_answer():
    runs = json.loads((ROOT / "results/answer.json").read_text())["runs"]
    curves = {name: [r["curve"] for r in runs if r["method"] == name] for name in ("quick", "pyro", "plain")}
    ends = {name: median(curve[-1][1] for curve in those) for name, those in curves.items()}
    assert f"is at {ends['quick']:.2f} % (median" in PAGES["speed"]
    assert all(f"is at {ends[name]:.1f} % |" in PAGES["speed"] for name in ("pyro", "plain"))
    minutes = f"{median(minutes_to(5, curve) for curve in curves['quick']):.1f}"
    longer = [r["curve"] for r in runs if r["method"] == "longer"]
    to_paper, ends_at = median(minutes_to(3.33, curve) for curve in longer), [curve[-1][1] for curve in longer]
    assert f"| {minutes} minutes (median;" in PAGES["speed"] and f"| {to_paper:.1f} minutes (median;" in PAGES["speed"]
    assert f"ends at {median(ends_at):.2f} % after" in PAGES["speed"]
    assert f"{min(ends_at):.2f} to {max(ends_at):.2f} %)" in PAGES["speed"]
    assert f"| {minutes}; with more epochs {to_paper:.1f} (medians of five draws;" in README
    assert f"is at {ends['pyro']:.1f} % after 4" in README
    errors = {name: [] for name in ("quick1000", "quick5000", "quick25000", "quick")}
    for run in runs:
        if run["method"] in errors and run["split"] < 2:
            errors[run["method"]].append(f"{run['curve'][-1][1]:.2f}")
    assert f"| {' | '.join(map(', '.join, errors.values()))} |" in PAGES["scale"]
