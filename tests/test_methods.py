"""What each method trains and what it may see, on the embedded images."""

import pytest
import torch
from torch.testing import assert_close

from vae import methods
from vae.data import binarize
from vae.methods import MORE, SETTINGS, UNDONE, settings_of
from vae.stages import M1_SETTINGS


@pytest.mark.parametrize("method", SETTINGS)
def test_a_smoke_run_has_at_most_one_epoch_of_each_stage_and_else_the_same_settings(method):
    full, smoke = settings_of(method), settings_of(method, smoke=True)
    assert full == SETTINGS[method]
    m1_of_full, m1_of_smoke = (settings.get("m1") for settings in (full, smoke))
    full, smoke = ({k: v for k, v in settings.items() if k != "m1"} for settings in (full, smoke))
    stages = full.get("epochs", {})
    assert {"epochs": {}, **smoke} == {**full, "epochs": {stage: min(epochs, 1) for stage, epochs in stages.items()}}
    expected = (None, None) if method == "mlp" else (M1_SETTINGS, M1_SETTINGS | {"epochs": 10})
    assert (m1_of_full, m1_of_smoke) == expected


def changed_in(variants):
    pairs = {name: (SETTINGS[name], SETTINGS[name.partition("_")[0]]) for name in variants}
    return {name: {k for k, value in now.items() if value != before.get(k)} for name, (now, before) in pairs.items()}


def test_each_ablation_undoes_one_thing_and_the_naive_m2_all_of_them():
    changed = changed_in(UNDONE)
    everything, exact = changed.pop("m2_naive"), changed.pop("m2_naive_exact")
    assert all(len(keys) == 1 for keys in changed.values())
    assert everything == set.union(*changed.values()) == exact - {"k"}
    assert all(SETTINGS[name].keys() == SETTINGS["m2"].keys() for name in UNDONE)


def test_the_other_variants_change_one_thing():
    assert changed_in(MORE) == {"m2_longer": {"epochs"}, "m1m2_longer": {"epochs"}, "m2_bf16": {"bf16"}}
    for method, stage, factor in (("m2", "released", 5), ("m1m2", "joint", 4)):
        epochs = SETTINGS[method]["epochs"]
        assert SETTINGS[f"{method}_longer"]["epochs"] == epochs | {stage: factor * epochs[stage]}


def test_skips_change_the_model_and_the_length_of_its_stages():
    assert changed_in(["m1m2_skips"]) == {"m1m2_skips": {"skips", "epochs"}}
    before, now = (SETTINGS[method]["epochs"] for method in ("m1m2", "m1m2_skips"))
    assert now == before | {"labels of images": 2, "joint": 48}


@pytest.mark.parametrize("method", ["m1mlp", "m1m2", "m1m2_skips"])
def test_m1_stays_as_it_is(method, task, m1, embedded):
    before = {key: value.clone() for key, value in m1.state_dict().items()}
    classify, _ = getattr(methods, method)(task(method))
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


def test_batches_are_of_the_rows_asked_for(task, embedded):
    problem = task("m2")
    batches = problem.batches(embedded.train_images, binarize)
    assert_close(batches.rows, embedded.train_images[problem.labeled])
    assert_close(batches.unlabeled_rows, embedded.train_images[problem.unlabeled])
    assert (batches.num_labeled, batches.num_unlabeled) == (100, 200)
