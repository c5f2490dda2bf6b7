"""The table and its figure, from result files."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from vae import table
from vae.methods import METHODS, VARIANTS
from vae.table import (
    BEGIN,
    COLORS,
    END,
    NAMES,
    PAPER,
    VARIANT_NAMES,
    markdown,
    read_results,
    replace_table,
    variants_markdown,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """Six results: M2 at 100 labels with errors of 8, 10 and 12 %, at 1,000 with 5 %; the MLP at both."""
    cells = {("m2", 100, 0): 8, ("m2", 100, 2): 12, ("m2", 100, 1): 10, ("m2", 1000, 0): 5}
    cells |= {("mlp", 100, 0): 25.5, ("mlp", 1000, 0): 9}
    for (method, labels, split), error in cells.items():
        result = {"method": method, "labels": labels, "split": split, "test_error": error, "valid_error": 0}
        result |= {"cpu_minutes": split + 1, "updates": 2000 if method == "m2" else 0, "settings": {}}
        (tmp_path / f"{method}-{labels}-{split}.json").write_text(json.dumps(result))
    return tmp_path


def test_table_holds_mean_and_standard_deviation_and_number_of_splits(folder):
    lines = markdown(read_results(folder)).splitlines()
    assert lines[0] == "| test error (%) | 100 labels | 1,000 labels | CPU minutes, updates |"
    assert lines[2] == "| labels only: MLP | **25.50** (1) | **9.00** (1) | 1.0 |"
    assert lines[3] == "| – the paper | 25.81 | 10.70 | |"
    assert lines[4] == "| M2 | **10.00 ± 2.00** (3) | **5.00** (1) | 2.0, 2,000 |"
    assert lines[5] == "| – the paper | 11.97 ± 1.71 | 3.60 ± 0.56 | |"
    assert len(lines) == 6


def test_variants_stand_beside_m2_on_the_same_draws(folder):
    for split, error in enumerate((20, 24)):
        result = {"method": "m2_one_layer", "labels": 100, "split": split, "test_error": error, "valid_error": 0}
        result |= {"cpu_minutes": 3, "updates": 0, "settings": {}}
        (folder / f"m2_one_layer-100-{split}.json").write_text(json.dumps(result))
        (folder / f"m2_naive-600-{split}.json").write_text(json.dumps(result | {"method": "m2_naive", "labels": 600}))
    assert variants_markdown(read_results(folder, VARIANT_NAMES)).splitlines()[2:] == [
        "| as it is | **10.00 ± 2.00** (3) | 10.00 ± 2.00 | 2.0 |",
        f"| {VARIANT_NAMES['m2_one_layer']} | **22.00 ± 2.83** (2) | 9.00 ± 1.41 | 3.0 |",
    ]
    assert len(markdown(read_results(folder)).splitlines()) == 6  # and not in the table


def test_every_method_and_every_variant_has_a_name():
    assert NAMES.keys() == COLORS.keys() | {"m2_longer", "m1m2_longer"}
    assert COLORS.keys() == METHODS.keys()
    assert VARIANT_NAMES.keys() | {"m1m2_longer"} == {"m2", *VARIANTS}


def test_main_writes_the_table_and_the_figure(folder, tmp_path, monkeypatch):
    readme, images = tmp_path / "README.md", tmp_path / "_images"
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    monkeypatch.setattr(table, "read_results", lambda: read_results(folder))
    table.main(readme, images)
    assert readme.read_text() == f"before\n{BEGIN}\n{markdown(read_results(folder))}\n{END}\nafter\n"
    assert (images / "m2-error-vs-labels.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_says_what_the_committed_results_say():
    readme = (ROOT / "README.md").read_text()
    assert replace_table(readme, markdown(read_results(ROOT / "results/ssl"))) == readme


def test_figure_shows_the_same_numbers(folder):
    figure = table.errors_against_labels(read_results(folder))
    shown = {}
    for container in figure.axes[0].containers:
        line, _, bars = container
        shown[container.get_label()] = line.get_xydata().tolist(), bars[0].get_segments()
    assert shown["M2"][0] == [[100, 10], [1000, 5]]
    assert shown["M2"][1][0].tolist() == [[100, 8], [100, 12]]
    papers = [container[0].get_xydata().tolist() for container in figure.axes[0].containers]
    assert [[labels, values[0]] for labels, values in PAPER["m2"].items()] in papers
    plt.close(figure)


def test_a_file_that_is_no_result_is_named(folder):
    for content in ("", "{", "[]", '{"method": "m2"}', '{"method": "m2", "labels": 1, "split": 0, "test_error": 1}'):
        (folder / "broken.json").write_text(content)
        with pytest.raises(ValueError, match=r"broken\.json"):
            read_results(folder)


def test_table_goes_between_its_markers_and_changes_nothing_else():
    text = f"before\n{BEGIN}\nold\n{END}\nafter {math.pi}\n"
    once = replace_table(text, "| new |")
    assert once == f"before\n{BEGIN}\n| new |\n{END}\nafter {math.pi}\n"
    assert replace_table(once, "| new |") == once


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_markers_are_an_error(text):
    with pytest.raises(ValueError, match="once each"):
        replace_table(text, "| new |")
