"""What each method trains and what it may see, on the embedded images."""

import pytest
import torch
from torch.testing import assert_close

from vae import methods
from vae.data import binarize, labeled_split
from vae.methods import ABLATIONS, SETTINGS, Task, settings_of


@pytest.fixture
def task(embedded, m1, tmp_path):
    """A function that returns the task of a method, with 100 labels."""

    def make(method):
        generator = torch.Generator().manual_seed(0)
        labeled, unlabeled = labeled_split(embedded.train_labels, 100, generator)
        return Task(embedded, labeled, unlabeled, generator, m1, settings_of(method, smoke=True), tmp_path / method)

    return make


@pytest.mark.parametrize("method", SETTINGS)
def test_a_smoke_run_has_at_most_one_epoch_of_each_stage_and_else_the_same_settings(method):
    full, smoke = settings_of(method), settings_of(method, smoke=True)
    assert full == SETTINGS[method]
    stages = full.get("epochs", {})
    assert {"epochs": {}, **smoke} == {**full, "epochs": {stage: min(epochs, 1) for stage, epochs in stages.items()}}


def test_each_ablation_undoes_one_thing_and_the_naive_m2_all_of_them():
    chosen = SETTINGS["m2"]
    changed = {name: {k for k in chosen if SETTINGS[name][k] != chosen[k]} for name in ABLATIONS}
    everything = changed.pop("m2_naive")
    assert all(len(keys) == 1 for keys in changed.values())
    assert everything == set.union(*changed.values())
    assert all(SETTINGS[name].keys() == chosen.keys() for name in ABLATIONS)


@pytest.mark.parametrize("method", ["m2", "m1m2"])
def test_the_classifier_learns_labels_then_stops_then_learns_with_the_rest(task, method, monkeypatch):
    """Which networks move in each stage."""
    moved, fit = {}, methods.fit

    def recording(loss_fn, model, batches, *, name, **settings):
        networks = {"encoder": m2.encoder, "decoder": m2.decoder, "classifier": m2.classifier}
        before = {key: [p.clone() for p in network.parameters()] for key, network in networks.items()}
        history = fit(loss_fn, model, batches, name=name, **settings)
        moved[name] = {
            key
            for key, network in networks.items()
            if not all(torch.equal(a, b) for a, b in zip(before[key], network.parameters(), strict=True))
        }
        return history

    class Recorded(methods.SemiSupervisedVAE):
        def __init__(self, *networks):
            nonlocal m2
            super().__init__(*networks)
            m2 = self

    m2 = None
    monkeypatch.setattr(methods, "SemiSupervisedVAE", Recorded)
    monkeypatch.setattr(methods, "fit", recording)
    getattr(methods, method)(task(method))
    everything = {"encoder", "decoder", "classifier"}
    assert moved == {"labels": {"classifier"}, "stopped": everything - {"classifier"}, "released": everything}
    scale = SETTINGS[method]["label_scale"]
    for network in (m2.encoder.network, m2.decoder.network):
        assert 0.9 * scale < network.label_column.weight.std() < 1.1 * scale


def test_the_classifier_from_m1_has_the_hidden_layers_of_its_encoder(task, m1, embedded):
    x, encoder = embedded.valid_images, m1.encoder.network
    expected = encoder.rest[:-1](encoder.first(x))
    classifier = methods._classifier_from_m1(m1, [500, 500]).network
    assert_close(classifier.rest[:-1](classifier.first(x)), expected)
    assert classifier.rest[-1].out_features == 10


def test_one_layer_on_m1_leaves_m1_as_it_is(task, m1, embedded):
    before = {key: value.clone() for key, value in m1.state_dict().items()}
    classify, _ = methods.m1mlp(task("m1mlp"))
    assert classify(embedded.test_images).shape == (500,)
    for key, value in m1.state_dict().items():
        assert torch.equal(value, before[key])


class Estimator:
    """Stands for a scikit-learn classifier and keeps what it is given."""

    def fit(self, features, labels):
        self.features, self.labels = torch.from_numpy(features), torch.from_numpy(labels)


def test_estimators_see_labels_of_the_labelled_images_only_and_unlabelled_ones_of_every_digit(task, m1, embedded):
    estimator, problem = Estimator(), task("m1spread")
    methods._on_m1(estimator, problem, num_unlabeled=500)
    with torch.no_grad():
        means = m1.encoder(embedded.train_images).mean
    assert_close(estimator.features[:100], means[problem.labeled])
    assert torch.equal(estimator.labels[:100], embedded.train_labels[problem.labeled])
    assert (estimator.labels[100:] == -1).all()
    rows = torch.cdist(estimator.features[100:], means).argmin(1)
    assert set(rows.tolist()) <= set(problem.unlabeled.tolist())
    assert torch.bincount(embedded.train_labels[rows], minlength=10).min() > 20  # 50 of each digit, more or less


def test_a_stage_of_no_epochs_is_left_out(task, monkeypatch):
    stages = []
    monkeypatch.setattr(methods, "fit", lambda *arguments, name, **settings: stages.append(name) or [])
    methods.m2(task("m2_unstopped"))
    assert stages == ["labels", "released"]


def test_batches_are_of_the_rows_asked_for(task, embedded):
    problem = task("m2")
    batches = problem.batches(embedded.train_images, binarize)
    assert_close(batches.rows, embedded.train_images[problem.labeled])
    assert_close(batches.unlabeled_rows, embedded.train_images[problem.unlabeled])
    assert (batches.num_labeled, batches.num_unlabeled) == (100, 200)
