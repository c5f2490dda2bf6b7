"""The tables and numbers of README and pages are those of the committed results, and the figure's, too."""

from pathlib import Path

import pytest

from experiments import table

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]


def cells(key, errors):
    """Return results of a row, {number of labels: [one for each error, …]}, that took 1, 2, … minutes."""
    return {
        n: [
            {"split": split, "test_error": error, "cpu_minutes": split + 1, "updates": 2000 * (key != "mlp")}
            for split, error in enumerate(drawn)
        ]
        for n, drawn in errors.items()
    }


RESULTS = {
    key: cells(key, errors)
    for key, errors in {
        "mlp": {100: [25.5], 1000: [9]},
        "m2": {100: [8, 10, 12], 1000: [5]},
        "m2_short": {100: [10, 14, 12]},
        "m2_one_layer": {100: [20, 26]},
    }.items()
}


def test_table_changes_nothing_in_the_committed_pages(monkeypatch):
    monkeypatch.chdir(ROOT)
    values = table.values()
    assert all(table.with_values(page.read_text(), values) == page.read_text() for page in PAGES)
    named = {match[2] for page in PAGES for match in table.MARKED.finditer(page.read_text())}
    assert {"comparison", "ablations", "fashion", "m2-100", "m2_softplus_exact", "toy-iwae-gap"} <= named


def test_tables_hold_mean_and_standard_deviation_and_number_of_splits():
    assert table.markdown(
        {key: RESULTS[key] for key in ("mlp", "m2")}, others={"X": {100: (1.3, 0.07)}}
    ).splitlines() == [
        "| test error (%) | 100 labels | 1,000 labels | CPU minutes, updates |",
        "| --- | --- | --- | --- |",
        "| labels only: MLP | **25.50** (1) | **9.00** (1) | 1.0 |",
        "| – the paper | 25.81 | 10.70 |  |",
        "| M2 | **10.00 ± 2.00** (3) | **5.00** (1) | 2.0, 2,000 |",
        "| – the paper | 11.97 ± 1.71 | 3.60 ± 0.56 |  |",
        "| X | 1.30 ± 0.07 | – |  |",
    ]
    short, changed = table.ablations_markdown({key: RESULTS[key] for key in ("m2_short", "m2_one_layer")}).splitlines()[
        2:
    ]
    assert short.endswith("| **12.00 ± 2.00** (3) | – | 2.0 |")
    assert changed.endswith("| **23.00 ± 4.24** (2) | 11.0 ± 1.4 | 1.5 |")  # compared on the same draws


def m1m2_results():
    """Three draws of M1+M2, of which the short run lacks one, and of the short run's one knows the KL divergence."""
    cell = {"epochs": 2, "updates": 4000, "cpu_minutes": 1}
    long = [{"split": s, "test_error": 3.0 + s, "curve": [6, 4 - s], "kl_of_style": [1, 6.0 + s]} for s in (0, 1, 2)]
    short = [{"split": s, "test_error": 3.5 + s, "curve": [9, 5]} for s in (2, 0)]
    short[0]["kl_of_style"] = [0.5, 4]
    return {key: {100: [cell | run for run in runs]} for key, runs in (("m1m2", long), ("m1m2_short", short))}


def test_m1m2_is_compared_with_its_short_run_on_the_same_draws():
    *_, long, short, gained, divergence, log = table.m1m2_markdown(m1m2_results()).splitlines()
    assert long.endswith("| **4.00 ± 1.00** |") and short.endswith("| **4.50 ± 1.41** |")
    assert gained == "| points gained, draw by draw | 0.50 ± 0.00 |"
    assert divergence.endswith("| 7.0 ± 1.0 |") and log.endswith("| 2.80 |")


def test_where_the_short_run_lacks_a_number_of_labels_m1m2_stands_alone():
    results = m1m2_results()
    results["m1m2_short"] = {600: results["m1m2_short"].pop(100)}
    *_, long, short, gained, _, _ = table.m1m2_markdown(results).splitlines()
    assert long.endswith("| **4.00 ± 1.00** |") and short.endswith("| – |") and gained.endswith("| – |")


def test_the_figure_over_updates_shows_means_over_draws():
    error, divergence = (
        [line.get_xydata().tolist() for line in axis.lines] for axis in table.m1m2_over_updates(m1m2_results()).axes
    )
    assert error == [[[2, 6], [4, 3]], [[2, 9], [4, 5]]]
    assert divergence[:2] == [[[2, 1], [4, 7]], [[2, 0.5], [4, 4]]]


def test_the_plain_recipe_shows_each_draw_that_is_long_enough():
    runs = [{"curve": [50.0, 40.0], "epochs": 2, "updates": 5000}, {"curve": [30.0], "epochs": 1, "updates": 2500}]
    assert table.errors_after(runs).split(" | ")[1:4] == ["50; 30", "40", "–"]


def test_the_figure_shows_the_same_numbers():
    lines = table.errors_against_labels(RESULTS).axes[0].containers
    assert [[100, 10], [1000, 5]] in [line[0].get_xydata().tolist() for line in lines]
    assert [[100, 8], [100, 12]] in [line[2][0].get_segments()[0].tolist() for line in lines]


@pytest.mark.parametrize("text", ["{begin}", "{end}", "{end}{begin}", "{begin}{begin}{end}", "{other}"])
def test_markers_that_are_no_pair_or_of_no_value_are_refused(text):
    begin, end = "<!-- begin new: make table -->", "<!-- end new -->"
    other = "<!-- begin other: make table --><!-- end other -->"
    assert table.with_values(f"a {begin}old{end} b", {"new": "1 ± 2"}) == f"a {begin}1 ± 2{end} b"
    with pytest.raises(ValueError):
        table.with_values(text.format(begin=begin, end=end, other=other), {"new": "1"})
