"""The benchmarks: their counts against closed forms, their step against `fit`, the peers against our models."""

import json
import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from experiments import runner
from experiments.__main__ import main
from experiments.bench import answer
from experiments.bench.limits import count_bytes, count_flops, step_cost
from experiments.bench.measure import interleave, median_ratio, peak_mib
from experiments.bench.report import minutes_to, times_to_errors
from experiments.bench.steps import MISSING, PEERS, Case, build_model, build_training, random_images
from vae.conv import ConvNet
from vae.data import Batches, binarize
from vae.training import fit

M1_LAYERS = 784 * 500 + 500 * 500 + 500 * 100 + 50 * 500 + 500 * 500 + 500 * 784


def test_m1_computes_three_products_a_layer_but_no_gradient_of_its_images():
    assert count_flops(Case("m1", 20)) == 3 * 2 * 20 * M1_LAYERS - 2 * 20 * 784 * 500
    assert count_flops(Case("evaluation", 20)) == 2 * 20 * M1_LAYERS


@pytest.mark.parametrize(("what", "labels"), [("m2_exact", 10), ("m2_topk", 2)])
def test_m2_computes_the_wide_products_of_its_images_once(what, labels):
    of_images = 3 * (2 * 784 * 500 + 500 * 10) - 2 * 784 * 500
    of_labels = 3 * (500 * 100 + 50 * 500 + 500 * 784)
    assert count_flops(Case(what, 20)) == 2 * 20 * (of_images + labels * of_labels)


def test_images_of_a_shape_get_convolutions_whose_cost_is_that_of_their_pixels():
    small, large = (Case("m2_topk", 4, x_shape=(3, n, n)) for n in (16, 32))
    assert isinstance(build_model(small).encoder.network, ConvNet)
    assert 3.5 < count_flops(large) / count_flops(small) < 4
    assert count_bytes(small) > 4 * 4 * 3 * 16 * 16


def test_a_step_needs_its_products_its_optimizer_and_its_likelihood():
    parameters = M1_LAYERS + 500 + 500 + 100 + 500 + 500 + 784
    expected = count_flops(Case("m1", 20)), 28 * parameters + 784 * 4 * 20 * (3 + 2)
    assert step_cost(Case("m1", 20)) == step_cost(Case("pythae_m1", 20, threads=1)) == expected
    assert step_cost(Case("m2_loop", 20)) == step_cost(Case("pyro_m2", 20)) == step_cost(Case("m2_exact", 20))
    assert step_cost(Case("m1", 20, "bf16")) == (expected[0], 28 * parameters + 784 * 2 * 20 * (3 + 2))
    assert count_bytes(Case("iwae", 2, num_samples=10)) == 784 * 4 * 22


def test_ratios_are_of_the_same_round():
    assert median_ratio([2, 20, 2, 200], [1, 10, 1, 1]) == 2  # two rounds were slow for both, one for the first alone
    with pytest.raises(ValueError):
        median_ratio([1, 2], [1])


def test_calls_take_turns():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, seconds=0)
    assert "".join(order[-6:]) == "ababab"
    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 3, "b": 3}
    clock = iter(range(0, 100, 2)).__next__  # 2 later each time: one call seems to take 2, and two fill 4
    assert interleave({"a": int}, rounds=2, seconds=4, clock=clock) == {"a": [1, 1]}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_measured_step_is_that_of_fit(dtype):
    case, images = Case("m1", 20, dtype), random_images(rows=60)
    torch.manual_seed(1)
    vae, batches = build_model(case), Batches(images, 20, torch.Generator().manual_seed(0), binarize)
    history = fit(lambda x: -vae.elbo(x).mean(), vae, batches, epochs=2, lr=1e-3, bf16=dtype == "bf16")
    torch.manual_seed(1)
    update, batches = build_training(case, 1e-3, 6), Batches(images, 20, torch.Generator().manual_seed(0), binarize)
    assert [sum(update(x) for x in batches) / 3 for _ in range(2)] == [epoch["loss"] for epoch in history]


def test_peak_memory_holds_the_logits_of_every_label():
    few, many = (peak_mib(Case("m2_exact", 200, num_classes=n)) for n in (2, 42))
    logits = 40 * 200 * 784 * 4 / 2**20
    assert 2 * logits < many - few < 20 * logits


def copy_linear(layers, *ours):
    """Give pythae's or Pyro's linear layers the weights and biases (weight, bias) of ours."""
    for layer, (weight, bias) in zip(layers, ours, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})


def linear(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def test_pythae_maximizes_the_bound_of_our_m1():
    pytest.importorskip("pythae")
    from experiments.bench import peer_pythae

    case, x = Case("m1", 20), random_images(rows=20)
    ours, peer = build_model(case), peer_pythae.build_model(case)
    *hidden, last = ((m.weight.data, m.bias.data) for m in linear(ours.encoder))
    mean, log_scale = zip(*(p.chunk(2) for p in last), strict=True)
    copy_linear(linear(peer.encoder), *hidden, mean, [2 * p for p in log_scale])  # log-variance
    copy_linear(linear(peer.decoder), *((m.weight.data, m.bias.data) for m in linear(ours.decoder)))
    with torch.no_grad():
        losses = torch.tensor([[-ours.elbo(x).mean(), peer({"data": x}).loss] for _ in range(100)])
    assert losses[:, 0].mean().item() == pytest.approx(losses[:, 1].mean().item(), rel=1e-4)


def test_pyro_maximizes_the_bound_of_our_m2():
    pyro = pytest.importorskip("pyro")
    from experiments.bench import peer_pyro

    x, ours, peer = random_images(rows=20), build_model(Case("m2_exact", 20)), peer_pyro.M2(50, 10)
    for name in ("encoder", "decoder", "classifier"):
        network = getattr(ours, name).network
        first, *rest = ((m.weight.data, m.bias.data) for m in linear(network))
        if network.label_embedding is not None:
            first = torch.cat([first[0], network.label_embedding.weight.data.T], 1), first[1]
        copy_linear(linear(getattr(peer, name)), first, *rest)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        pairs = [[-ours.unlabeled_elbo(x).sum(), elbo.loss(peer.model, peer.guide, x)] for _ in range(100)]
    mean, peer_mean = torch.tensor(pairs).mean(0).tolist()
    assert mean == pytest.approx(peer_mean, rel=1e-3)
    y = torch.arange(20) % 10
    labels, elbo = torch.nn.functional.one_hot(y, 10).float(), pyro.infer.Trace_ELBO()
    with torch.no_grad():
        pairs = [[-ours.labeled_elbo(x, y).sum(), elbo.loss(peer.model, peer.guide, x, labels)] for _ in range(100)]
    mean, peer_mean = torch.tensor(pairs).mean(0).tolist()
    assert mean == pytest.approx(peer_mean, rel=1e-3)


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SMOKE", True)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "STATE", tmp_path / "checkpoints")
    return tmp_path


def test_a_smoke_run_leaves_file_and_figure(smoke, monkeypatch, capsys):
    monkeypatch.setattr("experiments.bench.run.peak_mib", lambda case: 1)  # a process for each case; tested below
    main(["bench"])
    result = json.loads((smoke / "results/bench.json").read_text())
    committed = json.loads((Path(__file__).parents[1] / "results/bench.json").read_text())
    assert result.keys() == committed.keys()
    assert result["measurements"][0].keys() == committed["measurements"][0].keys() | {"x_shape"}
    assert {(r["what"], r["threads"]) for r in result["measurements"]} >= {("m1", 1), ("iwae", 2), ("m2_loop", 1)}
    ratios, output = result["ratios"], capsys.readouterr().out
    assert all(0 < ratio < math.inf for ratio in ratios.values())
    assert ratios.keys() >= {"m1_fp32_of_limit", "m2_exact_fp32_of_limit"}
    for what, peer in PEERS.items():
        missing = what in MISSING
        assert (f"LEFT OUT: {what}" in output) == (not any(name.endswith(peer) for name in ratios)) == missing
    assert (smoke / "_images/throughput.png").read_bytes().startswith(b"\x89PNG")


def test_how_cost_grows_is_a_file_of_its_own(smoke):
    main(["bench", "--scaling"])
    scaling = json.loads((smoke / "results/bench-scaling.json").read_text())["scaling"]
    assert [(r["what"], r["num_classes"]) for r in scaling["num_classes"]] == [
        (what, n) for what in ("m2_exact", "m2_topk") for n in (2, 4)
    ]
    assert [r["x_shape"] for r in scaling["x_shape"]] == [[784], [1, 5, 6]]
    assert all(r["cpu_seconds_per_1000_images"] > 0 for records in scaling.values() for r in records)


def test_the_time_to_an_error_is_that_of_the_first_look_at_or_below_it():
    curve = [[1, 20], [2, 5], [3, 6], [4, 3]]
    assert [minutes_to(threshold, curve) for threshold in (20, 5, 4.9, 3, 2.9)] == [1, 2, 4, 4, math.inf]


def test_the_median_draw_is_told_or_where_it_ends():
    curves = [[[1, 4], [2, 3]], [[1, 9], [2, 4]], [[1, 9], [2, 6]]]
    reached, missed = times_to_errors([{"method": "m2", "curve": curve} for curve in curves], (5, 3.33))
    assert reached.startswith("m2, 5 %") and "3 draws: 2.0 minutes" in reached
    assert missed.startswith("m2, 3.33 %") and "not reached in 2.0 minutes" in missed and "4.00 %" in missed


def test_fewer_images_get_about_as_many_steps(monkeypatch, embedded):
    monkeypatch.setattr(runner, "load_data", lambda name: embedded)
    steps = {}
    for run in (run for run in answer.RUNS if run.name.startswith("quick") and run.split == 0):
        num_images, m2 = run.num_images or 50_000, run.method.recipe
        assert len(run.data().train_images) == len(run.data().train_labels) == min(num_images, 4_000)
        batches = (num_images - answer.LABELS) // run.method.unlabeled_batch_size
        steps[run.name] = batches * np.array([run.method.m1.recipe.epochs, m2.label_epochs, m2.unfrozen_epochs])
    assert len(steps) == 4
    assert all((abs(few / steps["quick"] - 1) < 0.25).all() for few in steps.values())


def test_errors_over_time_leave_file_and_figure_and_are_not_trained_twice(smoke, monkeypatch, capsys):
    pytest.importorskip("pyro")
    m1 = replace(answer.QUICK.m1, hidden_dims=(20,), recipe=replace(answer.QUICK.m1.recipe, epochs=1))
    small = replace(answer.QUICK, m1=m1, hidden_dims=(20,))
    runs = [replace(run, method=small) if run.name not in ("plain", "pyro") else run for run in answer.RUNS]
    monkeypatch.setattr(answer, "RUNS", runs)
    for _ in range(2):
        main(["bench", "--answer"])
    assert "7 of 7 results are there" in capsys.readouterr().out
    results = json.loads((smoke / "results/answer.json").read_text())["runs"]
    methods = [result["method"] for result in results]
    assert methods == ["quick", "longer", "quick1000", "quick5000", "quick25000", "plain", "pyro"]
    for result in results:
        minutes, errors = zip(*result["curve"], strict=True)
        assert minutes[0] > 0 and sorted(minutes) == list(minutes) and all(0 <= error <= 100 for error in errors)
    stages = results[0]["curve"]
    assert len(stages) == 3 and results[0]["cpu_minutes"] == stages[-1][0]
    assert matplotlib.image.imread(smoke / "_images/error-vs-cpu-minutes.png").shape[1] == pytest.approx(1008, abs=2)
