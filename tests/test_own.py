"""Cells of `experiments.own`: made data are what they claim, labels are few, results say all and are computed once."""

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from experiments import UserError, own, own_data, table
from experiments.own_data import CELLS, DATA, Own, draw
from experiments.runner import load_result, plain, run_jobs, write_result

COMMITTED = sorted((Path(__file__).parent.parent / "results/own").glob("*.json"))


@pytest.mark.parametrize("split", range(3))
def test_clusters_are_the_classes_or_cut_across_them(split):
    x, y = own_data.clusters_are_classes(split)
    assert QuadraticDiscriminantAnalysis().fit(x, y).score(x, y) > 0.97
    assert np.bincount(y) / len(y) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    assert (x[:, 8:].std(0) / x[:, :8].std()).tolist() == pytest.approx([10] * 5, rel=0.1)
    x, y = own_data.clusters_cut_across(split)
    cluster = KMeans(4, n_init=5, random_state=0).fit_predict(x)
    assert [y[cluster == k].mean() for k in range(4)] == pytest.approx([0.5] * 4, abs=0.1)
    assert LogisticRegression().fit(x, y).score(x, y) > 0.97


@pytest.mark.parametrize("split", range(3))
def test_one_blob_is_normal_and_its_classes_are_unbalanced_and_linear(split):
    x, y = own_data.one_blob(split)
    centered = (x - x.mean(0)) / x.std(0)
    assert (centered**4).mean(0).tolist() == pytest.approx([3] * 15, abs=0.6)
    assert abs(np.corrcoef(x[:, :10].T) - np.eye(10)).max() > 0.3
    assert np.bincount(y) / len(y) == pytest.approx([0.6, 0.3, 0.1], abs=0.001)
    assert LogisticRegression(max_iter=1000).fit(centered, y).score(centered, y) > 0.95


@pytest.mark.parametrize("name", [name for name in DATA if "mnist" not in name])
def test_so_many_labels_are_drawn_and_no_row_trains_and_tests(name, monkeypatch):
    x, y = DATA[name](0)
    monkeypatch.setitem(DATA, name, lambda split: (np.arange(len(x)), y))  # rows know who they are
    drawn = {count: draw(Own(name, count)) for count in own_data.LABELS_PER_CLASS}
    for count, (rows, test_rows, y_train, y_test, few) in drawn.items():
        assert sorted([*rows, *test_rows]) == list(range(len(x)))
        assert len(test_rows) == -(-len(x) // 4)
        assert (y[rows] == y_train).all() and (y[test_rows] == y_test).all()
        given = few >= 0
        assert (few[given] == y_train[given]).all()
        assert np.bincount(few[given]).tolist() == np.minimum(count, np.bincount(y_train) // 2).tolist()
    assert (drawn[3][1] != draw(Own(name, 3, split=1))[1]).any()


def test_a_cell_is_computed_once_and_has_a_number_for_each_method(tmp_path, capsys):
    job = own.job_of(Own("wine", 3, 6).smoke())
    for there in (0, 1):
        run_jobs([job], joblib.Parallel(return_as="generator_unordered"), tmp_path, tmp_path / "state")
        assert f"{there} of 1 results are there" in capsys.readouterr().out
    [[result]] = own.read_results(tmp_path / "own").values()
    write_result(result | {"name": "wine-3-0", "split": 0}, tmp_path / "own/wine-3-0.json")
    assert own.read_results(tmp_path / "own") == {("wine", 3): [result]}  # by draw 0 settings were chosen
    for what in ("test_errors", "cpu_seconds"):
        assert list(result[what]) == list(own.METHODS)
        assert min(result[what].values()) >= 0
    assert max(result["test_errors"].values()) <= 100
    assert (result["num_rows"], result["num_test_rows"], result["num_columns"], result["num_labeled"]) == (
        133,
        45,
        13,
        9,
    )
    assert result["chosen"] in result["cv_results"] and result["num_classes"] == 3
    for what in ("log_losses", "calibration_errors"):
        assert result[what].keys() == {own.LABELS, own.UNGUARDED, own.GUARDED} and min(result[what].values()) > 0


def test_committed_results_are_of_todays_draws_settings_and_estimator():
    for result in map(load_result, COMMITTED):
        cell = own_data.cell_of(result["data"], result["labels_per_class"], result["split"])
        assert cell.split in own_data.SPLITS
        assert result["settings"] == plain(cell) and own.job_of(cell).path == f"own/{result['name']}"
        assert list(result["cv_results"]) == ["labels alone", "M2"]
        assert min(found["temperature"] for found in result["cv_results"].values()) >= 1
        if result["data"] in ("digits", "breast-cancer", "wine"):  # which no processor computes
            assert result["data_checksum"] == own.checksum(draw(cell))


def results(errors, chosen="M2"):
    """Return a cell's results, draw by draw, from errors {method: [one a draw]}; the others are wrong in half."""
    num = len(next(iter(errors.values())))
    every = [{name: errors.get(name, [50] * num)[split] for name in own.METHODS} for split in range(num)]
    calibration = dict(zip((own.LABELS, own.UNGUARDED, own.GUARDED), (9, 20, 4), strict=True))
    same = {"chosen": chosen, "calibration_errors": calibration}
    return [
        same | {"test_errors": each, "split": split} for split, each in enumerate(every, own_data.AFTER_THE_RULE - 1)
    ]


def test_table_and_summary_compare_draw_by_draw():
    cells = {
        CELLS[0]: results({own.LABELS: [10, 20], own.GUARDED: [5, 9], own.SPREADING: [20, 8]}),  # better than both
        CELLS[1]: results({own.LABELS: [10, 20], own.GUARDED: [12, 22.2], own.SPREADING: [9, 9]}),  # worse, surely
        CELLS[2]: results({own.LABELS: [10, 20], own.UNGUARDED: [6, 40], own.GUARDED: [9, 21.2]}, own.LABELS),
        CELLS[3]: results({own.LABELS: [10], own.GUARDED: [12]}),  # one draw says nothing
    }
    lines = table.own_markdown(cells).splitlines()
    assert lines[2].startswith("| digits, 3 | 15.0 ± 7.1 |") and lines[2].endswith("| 7.0 ± 2.8 | 2 of 2 |")
    assert lines[4].endswith("| 15.1 ± 8.6 | 0 of 2 |")
    told = table.own_summary(cells)
    assert "Of 3 cells with two draws or more, M2 answers in 2 at least once" in told
    assert "standard error of the difference, in 1: digits, 10." in told
    assert "in 1 of 2" in told
    assert "M2, unguarded errs more in 6 (200 points in all, at most 40.0) and less in 1 (4 points in all);" in told
    assert "M2Classifier errs more in 4 (7 points in all, at most 2.2) and less in 2 (16 points in all)." in told
    assert "In the 3 draws from there on: M2, unguarded errs more in 3 (80 points in all, at most 30.0)" in told
    assert "M2Classifier errs more in 2 (3 points in all, at most 2.2) and less in 1 (11 points in all)." in told
    assert "that the guard misses is 3.0 points, on a draw of digits, 30." in told
    assert "labels alone 9.0 %, M2, unguarded 20.0 %, M2Classifier 4.0 %." in told
    assert table.own_values(cells)["own-digits-3"] == "7.0 ± 2.8"
    assert table.own_values(cells)["own-digits-3-alone"] == "15.0 ± 7.1"
    [shown] = [line for line in own.against_labels_alone(cells).axes[0].lines if line.get_label() == "digits"]
    assert shown.get_xydata().tolist() == [[15, 7], [15, pytest.approx(17.1)], [15, pytest.approx(15.1)]]


def test_a_folder_without_results_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="python -m experiments own"):
        own.read_results(tmp_path)
