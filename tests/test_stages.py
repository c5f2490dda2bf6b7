"""The stages in which M2 and M1+M2 are trained: which networks move, from where they start, what is recorded."""

import copy
import itertools

import pytest
import torch
from torch.testing import assert_close

from vae import methods, stages
from vae.data import binarize
from vae.methods import SETTINGS


@pytest.mark.parametrize("method", ["m2", "m1m2"])
def test_the_classifier_learns_labels_then_stops_then_learns_with_the_rest(task, method, monkeypatch):
    """Which networks move in each stage."""
    moved, rates, fit = {}, {}, stages.fit

    def recording(loss_fn, model, batches, *, name, **settings):
        networks = {"encoder": m2.encoder, "decoder": m2.decoder, "classifier": m2.classifier}
        networks |= {"m1": model.m1} if name == "joint" else {}
        before = {key: [p.clone() for p in network.parameters()] for key, network in networks.items()}
        history = fit(loss_fn, model, batches, name=name, **settings)
        rates[name] = settings["lr"]
        moved[name] = {
            key
            for key, network in networks.items()
            if not all(torch.equal(a, b) for a, b in zip(before[key], network.parameters(), strict=True))
        }
        return history

    class Recorded(stages.SemiSupervisedVAE):
        def __init__(self, *networks):
            nonlocal m2
            super().__init__(*networks)
            m2 = self

    m2 = None
    monkeypatch.setattr(stages, "SemiSupervisedVAE", Recorded)
    monkeypatch.setattr(stages, "fit", recording)
    getattr(methods, method)(task(method))
    everything = {"encoder", "decoder", "classifier"}
    expected = {"labels": {"classifier"}, "stopped": everything - {"classifier"}, "released": everything}
    assert moved == expected | ({"joint": everything | {"m1"}} if method == "m1m2" else {})
    assert rates == dict.fromkeys(expected, SETTINGS[method]["lr"]) | ({"joint": 2e-3} if method == "m1m2" else {})
    scale = SETTINGS[method]["label_scale"]
    for network in (m2.encoder.network, m2.decoder.network):
        assert 0.9 * scale < network.label_column.weight.std() < 1.1 * scale


def test_the_classifier_from_m1_has_the_hidden_layers_of_its_encoder(task, m1, embedded):
    x, encoder = embedded.valid_images, m1.encoder.network
    expected = encoder.rest[:-1](encoder.first(x))
    classifier = stages.classifier_from_m1(m1, [500, 500]).network
    assert_close(classifier.rest[:-1](classifier.first(x)), expected)
    assert classifier.rest[-1].out_features == 10


class Stopped(Exception):
    """Training need not go on."""


@pytest.mark.parametrize("method", ["m1mlp", "m2", "m2_from_scratch"])
def test_labels_train_the_last_layer_alone_on_m1_and_all_layers_from_scratch(method, task, m1, monkeypatch):
    trained, fit_labels = [], stages.fit_labels

    def labels_only(classifier, *arguments):
        before = {key: value.clone() for key, value in classifier.state_dict().items()}
        fit_labels(classifier, *arguments)
        trained.extend(key for key, value in classifier.state_dict().items() if not torch.equal(value, before[key]))
        raise Stopped

    monkeypatch.setattr(stages, "fit_labels", labels_only)
    monkeypatch.setattr(methods, "fit_labels", labels_only)
    with pytest.raises(Stopped):
        methods.METHODS_AND_VARIANTS[method](task(method))
    layers = ["network.first", "network.rest.1", "network.rest.3"]
    expected = layers if method == "m2_from_scratch" else layers[-1:]
    assert trained == [f"{layer}.{part}" for layer in expected for part in ("weight", "bias")]


def test_history_holds_the_evaluation_after_each_epoch_of_each_stage(task):
    problem, epochs = task("m1m2"), itertools.count()
    stacked = stages.build_m1m2(problem.settings, problem.m1, problem.mnist.train_images)
    batches = problem.batches(stacked.features(problem.mnist.train_images), stacked.draw)
    watched = {"evaluate": lambda: {"number": float(next(epochs))}}
    history = stages.train_m2(stacked.m2, batches, problem.settings, problem.state, **watched)
    assert [epoch["number"] for epoch in history] == [0, 1, 2]
    assert all(epoch["cpu_seconds"] > 0 for epoch in history)
    assert {path.stem for path in problem.state.iterdir()} == {"labels", "stopped", "released"}


def test_a_stage_of_no_epochs_is_left_out(task, monkeypatch):
    trained = []
    monkeypatch.setattr(stages, "fit", lambda *arguments, name, **settings: trained.append(name) or [])
    methods.m2(task("m2_unstopped"))
    assert trained == ["labels", "released"]


def test_skips_start_as_m1_and_end_with_a_classifier_of_images(task, monkeypatch):
    """Before the joint stage the decoder does not see the label; in it, all but the classifier of latents moves."""
    problem, moved, fit = task("m1m2_skips"), {}, stages.fit
    images = problem.mnist.train_images
    stacked = stages.build_m1m2(problem.settings, problem.m1, images)
    z, y = torch.randn(10, problem.m1.encoder.z_dim), torch.arange(10)
    assert_close(stacked.m1.decoder(z, y).mean, problem.m1.decoder(z).mean)
    hidden = stages.classifier_from_m1(problem.m1, [500, 500]).network.rest[:-1].state_dict()
    assert_close(stacked.image_classifier.network.rest[:-1].state_dict(), hidden)

    def recording(loss_fn, model, batches, *, name, **settings):
        before = {key: p.clone() for key, p in stacked.named_parameters()}
        history = fit(loss_fn, model, batches, name=name, **settings)
        moved[name] = {key for key, p in stacked.named_parameters() if not torch.equal(p, before[key])}
        return history

    monkeypatch.setattr(stages, "fit", recording)
    feature_batches = problem.batches(stacked.features(images), stacked.draw)
    stages.train_m1m2(stacked, feature_batches, problem.batches(images, binarize), problem.settings, problem.state)
    assert list(moved) == ["labels", "stopped", "released", "labels of images", "joint"]
    assert moved["labels of images"] == {f"image_classifier.network.rest.3.{part}" for part in ("weight", "bias")}
    of_latents = {f"m2.classifier.{key}" for key, _ in stacked.m2.classifier.named_parameters()}
    assert moved["joint"] == {key for key, _ in stacked.named_parameters()} - of_latents


def test_an_m1_that_says_nothing_is_no_start_for_m1m2(task):
    problem = task("m1m2")
    problem.m1 = copy.deepcopy(problem.m1)
    problem.m1.encoder.network.rest[-1].weight.data.zero_()
    with pytest.raises(ValueError, match="train it longer"):
        stages.build_m1m2(problem.settings, problem.m1, problem.mnist.train_images)


@pytest.mark.parametrize("hidden_dims", [[500], [500, 400], [500, 500, 500]])
def test_a_classifier_takes_over_all_of_m1s_hidden_layers_or_none(hidden_dims, m1):
    with pytest.raises(ValueError, match="cannot take over"):
        stages.classifier_from_m1(m1, hidden_dims)


@pytest.mark.parametrize(("method", "dtype"), [("m2", torch.float32), ("m2_bf16", torch.bfloat16)])
def test_the_variant_in_bfloat16_computes_its_layers_so(method, dtype, task):
    here, dtypes = task(method), set()
    model = stages.build_m2(here.settings, here.m1)
    model.decoder.network.rest[-1].register_forward_hook(lambda layer, x, output: dtypes.add(output.dtype))
    stages.train_m2(model, here.batches(here.mnist.train_images, binarize), here.settings, here.state)
    assert dtypes == {dtype}
