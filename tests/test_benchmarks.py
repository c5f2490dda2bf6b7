"""The benchmarks: their counts against closed forms, their step against `fit`, the peers against our models."""

import json
import math
import time

import matplotlib.image
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.limits import count_flops, likelihood_bytes, limit_seconds, optimizer_bytes, step_cost
from benchmarks.memory import peak_mib
from benchmarks.steps import PEERS, Case, build_model, builder, installed, random_images, training_step
from benchmarks.timing import interleave, median_ratio
from vae.data import Batches, binarize
from vae.training import fit

M1_LAYERS = 784 * 500 + 500 * 500 + 500 * 100 + 50 * 500 + 500 * 500 + 500 * 784


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def flops(case):
    return count_flops(builder(case.what)(case, random_images(rows=100)))


def test_m1_computes_three_products_a_layer_but_no_gradient_of_its_images():
    assert flops(Case("m1", 20)) == 3 * 2 * 20 * M1_LAYERS - 2 * 20 * 784 * 500
    assert flops(Case("evaluation", 20)) == 2 * 20 * M1_LAYERS


@pytest.mark.parametrize(("what", "labels"), [("m2_exact", 10), ("m2_topk", 2)])
def test_m2_computes_the_wide_products_of_its_images_once(what, labels):
    of_images = 3 * (2 * 784 * 500 + 500 * 10) - 2 * 784 * 500
    of_labels = 3 * (500 * 100 + 50 * 500 + 500 * 784)
    assert flops(Case(what, 20)) == 2 * 20 * (of_images + labels * of_labels)


def test_a_step_needs_its_products_its_optimizer_and_its_likelihood():
    parameters = M1_LAYERS + 500 + 500 + 100 + 500 + 500 + 784
    expected = flops(Case("m1", 20)), 28 * parameters + 784 * 4 * 20 * (3 + 2)
    assert step_cost(Case("m1", 20)) == step_cost(Case("pythae_m1", 20)) == expected
    assert step_cost(Case("m2_loop", 20)) == step_cost(Case("pyro_m2", 20)) == step_cost(Case("m2_exact", 20))
    in_bf16 = step_cost(Case("m1", 20, "bf16"))
    assert in_bf16 == (expected[0], 28 * parameters + 784 * 2 * 20 * (3 + 2))


def test_the_limit_adds_arithmetic_and_traffic():
    assert optimizer_bytes(1000) == 28_000
    assert likelihood_bytes(images=2, rows=20, element_size=4, training=False) == 784 * 4 * 22
    assert limit_seconds(flops=6e9, num_bytes=1e9, flops_per_second=2e9, bytes_per_second=4e9) == 3.25


def test_ratios_are_of_the_same_round():
    assert median_ratio([2, 20, 2, 200], [1, 10, 1, 1]) == 2  # two rounds were slow for both, one for the first alone
    with pytest.raises(ValueError):
        median_ratio([1, 2], [1])


def test_calls_take_turns():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, seconds=0)
    assert "".join(order[-6:]) == "ababab"
    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 3, "b": 3}
    slow = interleave({"slow": lambda: time.sleep(0.02)}, rounds=1, seconds=0.05)
    assert 0.02 <= slow["slow"][0] < 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_measured_step_is_that_of_fit(dtype):
    case, trained = Case("m1", 20, dtype), []
    for measured in (False, True):
        vae = build_model(case)
        batches = Batches(random_images(rows=60), 20, torch.Generator().manual_seed(0), binarize)
        torch.manual_seed(1)
        if measured:
            step = training_step(lambda x, vae=vae: -vae.elbo(x).mean(), vae, iter(batches), case, 1e-3, total_steps=3)
            for _ in range(3):
                step()
        else:
            options = {"epochs": 1, "lr": 1e-3, "bf16": dtype == "bf16"}
            fit(lambda x, vae=vae: -vae.elbo(x).mean(), vae, batches, **options)
        trained.append(list(vae.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


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


def test_pythae_maximises_the_bound_of_our_m1():
    pytest.importorskip("pythae")
    from benchmarks import peer_pythae

    case, x = Case("m1", 20), random_images(rows=20)
    ours, peer = build_model(case), peer_pythae.build_model(case)
    *hidden, last = ((m.weight.data, m.bias.data) for m in linear(ours.encoder))
    mean, log_scale = zip(*(p.chunk(2) for p in last), strict=True)
    copy_linear(linear(peer.encoder), *hidden, mean, [2 * p for p in log_scale])  # log-variance
    copy_linear(linear(peer.decoder), *((m.weight.data, m.bias.data) for m in linear(ours.decoder)))
    with torch.no_grad():
        losses = torch.tensor([[-ours.elbo(x).mean(), peer({"data": x}).loss] for _ in range(100)])
    assert losses[:, 0].mean().item() == pytest.approx(losses[:, 1].mean().item(), rel=1e-4)


def test_pyro_maximises_the_bound_of_our_m2():
    pyro = pytest.importorskip("pyro")
    from benchmarks import peer_pyro

    x, ours, peer = random_images(rows=20), build_model(Case("m2_exact", 20)), peer_pyro.M2(50, 10)
    for name in ("encoder", "decoder", "classifier"):
        network = getattr(ours, name).network
        first, *rest = ((m.weight.data, m.bias.data) for m in linear(network))
        if network.label_column is not None:
            first = torch.cat([first[0], network.label_column.weight.data.T], 1), first[1]
        copy_linear(linear(getattr(peer, name)), first, *rest)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        pairs = [[-ours.unlabeled_elbo(x).sum(), elbo.loss(peer.model, peer.guide, x)] for _ in range(100)]
    mean, peer_mean = torch.tensor(pairs).mean(0).tolist()
    assert mean == pytest.approx(peer_mean, rel=1e-3)


def test_a_smoke_run_leaves_file_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_SMOKE", "1")
    main([])
    result = json.loads((tmp_path / "preview/smoke/bench.json").read_text())
    ratios = {"m1_fp32_of_limit", "m2_exact_fp32_of_limit"}
    output = capsys.readouterr().out
    beside_bf16 = set() if "LEFT OUT: bf16" in output else {"m1_bf16_vs_pythae", "m2_exact_bf16_vs_pyro"}
    peers = {"m1_vs_pythae", "m2_exact_vs_pyro", "m2_topk_vs_pyro", "m2_topk_bf16_vs_pyro"} | beside_bf16
    ratios |= {name for name in peers for what in PEERS if name.endswith(PEERS[what]) and installed(what)}
    assert result["ratios"].keys() == ratios
    assert all(0 < ratio < math.inf for ratio in result["ratios"].values())
    assert {(r["what"], r["threads"]) for r in result["measurements"]} >= {("m1", 1), ("iwae", 2), ("m2_loop", 1)}
    keys = {"what", "batch", "dtype", "threads", "images_per_second", "peak_mib", "fraction_of_limit"}
    assert all(keys <= r.keys() for r in result["measurements"])
    assert result.keys() >= {"gemm", "bandwidth", "scaling", "machine", "versions"}
    assert [r["num_classes"] for r in result["scaling"]["num_classes"]] == [2, 4]
    assert matplotlib.image.imread(tmp_path / "preview/smoke/throughput.png").shape[1] == pytest.approx(1008, abs=2)
    assert all((f"LEFT OUT: {what}" in output) != installed(what) for what in PEERS)


def test_part_of_it_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_SMOKE", "1")
    main(["--only", "evaluation"])
    assert "evaluation" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
