"""The benchmarks: how times are compared, Pyro's M2 against ours, and a smoke run of each command."""

import json
import math
from pathlib import Path
from statistics import median

import pytest
import torch

from experiments import data, runner
from experiments.__main__ import main
from experiments.bench import answer, run
from experiments.bench.answer import minutes_to, times_to_errors
from experiments.bench.run import build_model, random_images

ROOT = Path(__file__).parent.parent
README, SPEED = (ROOT / "README.md").read_text(), (ROOT / "docs/speed.md").read_text()


def test_ratios_are_of_the_same_round():
    assert run.median_ratio([2, 20, 2, 200], [1, 10, 1, 1]) == 2  # two slow for both, one for the first alone


def test_calls_take_turns():
    order = []
    times = run.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "abababab" and [len(times[name]) for name in "ab"] == [3, 3]


def layers(module):
    """Return weight and bias of each linear layer."""
    return [(m.weight.data, m.bias.data) for m in module.modules() if isinstance(m, torch.nn.Linear)]


def copy(ours, peer):
    for values, peer_values in zip(ours, layers(peer), strict=True):
        for value, peer_value in zip(values, peer_values, strict=True):
            peer_value.copy_(value)


def assert_equal_means(ours, peer, rel):
    with torch.no_grad():
        mean, peer_mean = torch.tensor([[ours(), peer()] for _ in range(100)]).mean(0).tolist()
    assert mean == pytest.approx(peer_mean, rel=rel)


def test_pyro_maximizes_the_bounds_of_our_m2():
    peer_pyro = pytest.importorskip("experiments.bench.peer_pyro", exc_type=ImportError)
    x, ours, peer = random_images(1), build_model("m2_exact"), peer_pyro.M2()
    for name in ("encoder", "decoder"):
        network = getattr(ours, name).network
        network.label_embedding.weight.data /= 30  # so that the bounds vary less
        (weight, bias), last = layers(network)
        first = torch.cat([weight, network.label_embedding.weight.data.T], 1), bias
        copy([first, last], getattr(peer, name))
    copy(layers(ours.classifier), peer.classifier)
    loss = peer_pyro.TraceEnum_ELBO(max_plate_nesting=1).loss
    assert_equal_means(lambda: -ours.unlabeled_elbo(x).sum(), lambda: loss(peer.model, peer.guide, x), rel=1e-3)
    y = torch.arange(20) % 10
    given, loss = (x, torch.nn.functional.one_hot(y, 10).float()), peer_pyro.Trace_ELBO().loss
    assert_equal_means(lambda: -ours.labeled_elbo(x, y).sum(), lambda: loss(peer.model, peer.guide, *given), rel=1e-3)


def test_the_time_to_an_error_is_that_of_the_first_look_at_or_below_it():
    curve = [[1, 20], [2, 5], [3, 6], [4, 3]]
    assert [minutes_to(threshold, curve) for threshold in (20, 5, 4.9, 3, 2.9)] == [1, 2, 4, 4, math.inf]
    curves = [[[1, 4], [2, 3]], [[1, 9], [2, 4]], [[1, 9], [2, 6]]]
    (line,) = times_to_errors([{"method": "m2", "curve": curve} for curve in curves])
    assert line == "m2, 3 draws: to 5 % 2.0, to 3.33 % inf minutes; 4.00 % after 2.0"


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    for module in (run, answer, data):
        monkeypatch.setattr(module, "SMOKE", True)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "STATE", tmp_path / "checkpoints")
    return tmp_path


def test_a_smoke_run_leaves_the_rows_of_the_committed_file(smoke, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # two would wait for each other
    main(["bench"])
    result = json.loads((smoke / "results/bench.json").read_text())
    committed = json.loads((Path(__file__).parents[1] / "results/bench.json").read_text())
    for part in ("throughput", "cost"):
        assert result[part].keys() == committed[part].keys()
        for row, old in zip(result[part]["rows"], committed[part]["rows"], strict=True):
            assert row.keys() == old.keys() and row["what"] == old["what"]
    left_out = [row["what"] for row in result["throughput"]["rows"] if not row["over_pyro"]]
    assert capsys.readouterr().out.count("LEFT OUT") == len(left_out) - 1  # Pyro has no M1 here


def test_errors_over_time_leave_file_and_figure_and_are_not_trained_twice(smoke, capsys):
    pytest.importorskip("pyro")
    for _ in range(2):
        main(["bench", "--answer"])
    assert "3 of 3 results are there" in capsys.readouterr().out
    results = json.loads((smoke / "results/answer.json").read_text())["runs"]
    assert [r["method"] for r in results] == ["quick", "longer", "pyro"]
    assert all(minutes > 0 and 0 <= error <= 100 for result in results for minutes, error in result["curve"])
    assert len(results[0]["curve"]) == 3 and results[0]["cpu_minutes"] == results[0]["curve"][-1][0]
    assert (smoke / "_images/error-vs-cpu-minutes.png").read_bytes().startswith(b"\x89PNG")


def test_speed():
    bench = json.loads((ROOT / "results/bench.json").read_text())
    for row in bench["throughput"]["rows"]:
        (fp32, bf16), over_pyro = (row["images_per_second"][dtype] for dtype in ("fp32", "bf16")), row["over_pyro"]
        beside = f"{over_pyro['fp32']:.3g} times " if over_pyro else "– |"
        assert f"| {fp32:,.0f} | {bf16:,.0f} | {beside}" in SPEED
        assert not over_pyro or f"; {over_pyro['bf16']:.1f} in bfloat16 |" in SPEED
        times = f"{over_pyro['fp32']:.3g}" if over_pyro else "–"
        assert row["what"] == "m2_topk" or f"| {fp32:,.0f} | {bf16:,.0f} | {times} |" in README
    for row in bench["cost"]["rows"]:
        assert f": {row['cpu_seconds_per_1000_images']:#.2g}".rstrip(".") + " |" in SPEED


def test_the_time_to_an_answer():
    runs = json.loads((ROOT / "results/answer.json").read_text())["runs"]
    curves = {name: [r["curve"] for r in runs if r["method"] == name] for name in ("quick", "pyro")}
    ends = {name: median(curve[-1][1] for curve in those) for name, those in curves.items()}
    assert f"is at {ends['quick']:.2f} % (median" in SPEED
    assert f"is at {ends['pyro']:.1f} % after 4 |" in SPEED
    minutes = f"{median(minutes_to(5, curve) for curve in curves['quick']):.1f}"
    longer = [r["curve"] for r in runs if r["method"] == "longer"]
    to_paper, ends_at = median(minutes_to(3.33, curve) for curve in longer), [curve[-1][1] for curve in longer]
    assert f"| {minutes} minutes (median;" in SPEED and f"| {to_paper:.1f} minutes (median;" in SPEED
    assert f"ends at {median(ends_at):.2f} % after" in SPEED
    assert f"{min(ends_at):.2f} to {max(ends_at):.2f} %)" in SPEED
    assert f"with 100 labels in {minutes} CPU minutes (median of five draws;" in README
    assert f"is at {ends['pyro']:.1f} % after 4" in README
