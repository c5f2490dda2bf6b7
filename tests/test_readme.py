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
