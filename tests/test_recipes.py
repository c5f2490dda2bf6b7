"""The stages in which M1, M2 and M1+M2 are trained: what each minimizes, which networks move, what is recorded."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils.data import DataLoader

from vae import recipes
from vae.checkpoint import OtherRunError
from vae.conv import ConvNet
from vae.data import NO_LABEL, Batches, SemiSupervisedBatches, binarize
from vae.evaluation import error_rate
from vae.marginalization import marginalize, marginalize_topk
from vae.networks import MLP, Classifier, Encoder
from vae.recipes import LabelsRecipe, M1Recipe, M2Recipe, build_m1, build_m1m2, build_m2
from vae.training import Recipe, fit

SHAPE = (1, 4, 6)
QUICK = M2Recipe(label_epochs=1, frozen_epochs=1, unfrozen_epochs=1, lr=1e-3)


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


def new_m2(num_classes=3, **options):
    return build_m2(SHAPE, num_classes, 2, (20,), **options)


@pytest.fixture
def m1():
    """Untrained, but its latents tell images apart."""
    m1 = build_m1(SHAPE, 3, (20,))
    nn.init.normal_(m1.encoder.network.output.weight)
    return m1


@pytest.fixture
def both_kinds(stripes):
    """A function that returns batches of 240 rows, 12 with their label, 6 in a batch, and 40 of those without."""

    def both_kinds(num_classes=3, num_labeled=12):
        number = torch.arange(240)
        y = (number % num_classes).where(number < num_labeled, NO_LABEL)
        return SemiSupervisedBatches(stripes.train_images, y, 6, 40, torch.Generator().manual_seed(0), binarize)

    return both_kinds


@pytest.fixture
def watch(monkeypatch):
    """A function that makes `fit` note for each stage what it minimizes, and which layers of a module move."""

    def watch(module):
        stages, fit = {}, recipes.fit

        def noting(loss, *arguments, name, before_epoch=None, **options):
            before = {key: p.clone() for key, p in module.named_parameters()}
            history = fit(loss, *arguments, name=name, before_epoch=before_epoch, **options)
            moved = {key.rpartition(".")[0] for key, p in module.named_parameters() if not torch.equal(p, before[key])}
            parts = {key.partition(".net")[0] for key in moved}
            stages[name] = {"loss": loss, "before_epoch": before_epoch, "moved": moved, "parts": parts}
            return history

        monkeypatch.setattr(recipes, "fit", noting)
        return stages

    return watch


def test_m1_learns_from_its_bound_the_divergence_in_even_steps_at_first_then_from_a_tighter_one(stripes, m1, watch):
    stages, batches = watch(m1), Batches(stripes.train_images, 40, torch.Generator(), binarize)
    recipes.train_m1(m1, batches, M1Recipe(warm_up_epochs=3, epochs=1, iwae_epochs=1, iwae_samples=7))
    x = binarize(stripes.valid_images, torch.Generator())
    bound, tighter = seeded(m1.elbo, x).mean(), seeded(m1.importance_weighted_bound, x, 7).mean()
    divergence = kl_divergence(m1.encoder(x), m1.prior).mean()
    assert_close(seeded(stages["M1 iwae"]["loss"], x), -tighter)
    for epoch, weight in enumerate((0.25, 0.5, 0.75, 1, 1)):
        stages["M1"]["before_epoch"](epoch)
        assert_close(seeded(stages["M1"]["loss"], x), -(bound + (1 - weight) * divergence))


def test_the_classifier_of_m2_learns_labels_is_frozen_then_learns_with_the_rest(watch, both_kinds, tmp_path):
    """After each epoch the model is evaluated; a stage without epochs is left out; each is kept in a file."""
    stages, epochs = watch(m2 := new_m2()), iter(range(9))
    options = {"folder": tmp_path, "evaluate": lambda: {"number": next(epochs)}}
    history = recipes.train_m2(m2, both_kinds(), replace(QUICK, unfrozen_epochs=3), **options)
    everything = {"encoder", "decoder", "classifier"}
    expected = {"labels": {"classifier"}, "frozen": everything - {"classifier"}, "unfrozen": everything}
    assert {name: stage["parts"] for name, stage in stages.items()} == expected
    assert all(p.requires_grad for p in m2.parameters())
    assert [epoch["number"] for epoch in history] == [1, 3, 5, 6, 7]  # and once before each stage
    assert {path.stem for path in tmp_path.iterdir()} == expected.keys()
    stages.clear()
    recipes.train_m2(m2, both_kinds(), replace(QUICK, frozen_epochs=0))
    assert list(stages) == ["labels", "unfrozen"]


def test_what_is_frozen_is_as_in_evaluation(both_kinds):
    """Running means of a network of one's own stay as they are, too."""
    m2 = new_m2()
    m2.classifier.network.hidden.append(nn.BatchNorm1d(m2.classifier.network.output.in_features))
    recipes.train_m2(m2, both_kinds(), replace(QUICK, label_epochs=0, unfrozen_epochs=0))
    assert m2.classifier.network.hidden[-1].num_batches_tracked == 0


@pytest.mark.parametrize("from_encoder", [False, True])
def test_labels_train_all_layers_or_those_on_an_encoders_the_last_alone(from_encoder, m1, watch, both_kinds):
    m2, layers = new_m2(m1=m1 if from_encoder else None), ["output"] if from_encoder else ["input", "output"]
    stages = watch(m2.classifier)
    recipes.train_on_labels(m2.classifier, both_kinds(), LabelsRecipe(epochs=1))
    recipes.train_m2(m2, both_kinds(), QUICK)
    for name in ("labels only", "labels"):
        assert stages[name]["moved"] == {f"network.{layer}" for layer in layers}
    x, y, _ = batch = next(iter(both_kinds()))
    assert_close(stages["labels"]["loss"](batch), cross_entropy(m2.classifier(x).logits, y))


@pytest.mark.parametrize("topk", [None, 1, 2])
def test_the_loss_weighs_labels_by_alpha_for_each_image_of_the_whole_data_set(topk, both_kinds):
    """In value and in gradient; the batch sizes, 6 and 40, say nothing of the 12 images with and 228 without label."""
    m2, batches = new_m2(), both_kinds()
    batch, classifier = next(iter(batches)), list(m2.classifier.parameters())
    x, y, x_unlabeled = batch
    without, weighed = (
        seeded(recipes.m2_loss(m2, batches, replace(QUICK, alpha_per_image=alpha, topk=topk)), batch)
        for alpha in (0, 0.7)
    )
    in_sum = partial(marginalize_topk, k=topk) if topk else marginalize
    labeled, unlabeled = seeded(lambda: (m2.labeled_elbo(x, y), m2.unlabeled_elbo(x_unlabeled, in_sum)))
    assert_close(without, -(12 * labeled.mean() + 228 * unlabeled.mean()) / 240)
    of_labels, difference = -0.7 * m2.classifier(x).log_prob(y).mean(), weighed - without
    assert_close(difference, of_labels, atol=1e-5, rtol=1e-4)
    gradients = (torch.autograd.grad(value, classifier) for value in (difference, of_labels))
    assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_layers_compute_in_the_recipes_precision_and_densities_in_float32(bf16, both_kinds):
    m2, seen = new_m2(), []
    for module in (m2.decoder.network.output, m2.decoder.network):
        module.register_forward_hook(lambda module, x, output: seen.append(output.dtype))
    recipes.train_m2(m2, both_kinds(), replace(QUICK, bf16=bf16))
    assert set(seen[::2]) == {torch.bfloat16 if bf16 else torch.float32}
    assert set(seen[1::2]) == {torch.float32}


def test_m2_with_a_label_for_every_row_learns_to_classify(both_kinds, stripes):
    m2, batches = new_m2(), both_kinds(num_labeled=240)
    history = recipes.train_m2(m2, batches, replace(QUICK, label_epochs=0, frozen_epochs=0, lr=1e-2), verbose=False)
    assert history[0]["updates"] == 240 // 6
    assert m2.labeled_elbo(*stripes.part("test")).isfinite().all()
    assert error_rate(m2.classify, *stripes.part("test")) < 30  # as good as can be: one of seven shows another class


def test_what_does_not_suit_the_model_is_refused_before_any_stage(both_kinds, watch):
    m2 = new_m2()
    stages, loader = watch(m2), DataLoader(torch.rand(9, *SHAPE), 3)
    for batches, topk, complaint in (
        (both_kinds(), 3, "topk = 3 must lie in 1…2, where the last sums over all labels exactly"),
        (both_kinds(), 0, "topk = 0 must lie in 1…2"),
        (both_kinds(num_classes=4), 1, "labels must be whole numbers in 0…2.* not 0…3"),
        (loader, 1, "^batches must be SemiSupervisedBatches of vae.data, not a DataLoader$"),
    ):
        with pytest.raises(ValueError, match=complaint):
            recipes.train_m2(m2, batches, replace(QUICK, topk=topk))
        if topk == 1:
            with pytest.raises(ValueError, match=complaint):
                recipes.train_on_labels(m2.classifier, batches, LabelsRecipe())
    assert not stages


def test_the_weights_prior_counts_once_for_all_images(stripes, m1):
    """Normal(0, 1/12) on every weight, whose ½ · 12 ‖w‖² is shared among 240 images."""
    reference = copy.deepcopy(m1)

    def loss(x):
        norm = sum(p.square().sum() for p in reference.parameters())
        return -reference.elbo(x).mean() + 12 / 240 * norm / 2

    def batches():
        return Batches(stripes.train_images, 40, torch.Generator().manual_seed(0), binarize)

    seeded(recipes.train_m1, m1, batches(), M1Recipe(epochs=2, weight_prior=12))
    seeded(partial(fit, epochs=2), loss, reference, batches(), Recipe(lr=M1Recipe().lr))
    assert_close(m1.state_dict(), reference.state_dict())


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, ["labels", "frozen", "unfrozen"]),
        ({"num_labeled": 18}, []),
        ({"label_scale": 3}, ["labels"]),  # encoder and decoder only learn later
        ({"alpha_per_image": 1 + 1e-9}, []),  # which no loss in float32 can show
        ({"unfrozen_epochs": 2}, []),
    ],
)
def test_a_stage_is_taken_from_its_checkpoint_only_if_it_would_compute_the_same(
    change, taken, both_kinds, tmp_path, capsys
):
    def run(folder, *, label_scale=0.1, num_labeled=12, **changes):
        torch.manual_seed(0)
        m2, batches = new_m2(label_scale=label_scale), both_kinds(num_labeled=num_labeled)
        recipes.train_m2(m2, batches, replace(QUICK, **changes), folder=folder)
        return m2.state_dict()

    run(tmp_path)
    capsys.readouterr()
    assert_close(run(str(tmp_path), **change), run(None, **change), rtol=0, atol=0)
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told if "not trained" in line] == taken
    assert sum("training anew" in line for line in told) == 3 - len(taken)
    with pytest.raises(OtherRunError, match=r"labels\.pt is of another run: .*; delete it to start over"):
        recipes.train_m2(new_m2(), both_kinds(), replace(QUICK, lr=0.1), folder=tmp_path, strict=True)


@pytest.mark.parametrize("network", [partial(MLP, activation=nn.SiLU), partial(ConvNet, channels=(2,))])
def test_a_classifier_from_an_encoder_has_a_copy_of_its_layers_and_a_last_one_of_its_own(stripes, network):
    encoder, x = Encoder(SHAPE, 3, (20,), network=network), stripes.valid_images
    hidden = []
    classifier = recipes.classifier_from_encoder(encoder, 5)
    for module in (encoder, classifier):
        module.network.output.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0].detach()))
    encoder(x), classifier(x).probs.prod().backward()
    assert_close(*hidden)
    assert classifier(x).probs.shape == (len(x), 5)
    assert all(p.grad is None for p in encoder.parameters())
    assert classifier.new_layers is classifier.network.output
    assert (fresh := Classifier(SHAPE, 5, (20,))).new_layers is fresh


def embeddings(m2):
    """Return the standard deviation of the label embeddings of M2: how visible y is decides whether M2 ever uses it."""
    return torch.cat([network.network.label_embedding.weight for network in (m2.encoder, m2.decoder)]).std().item()


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 3), ({"label_scale": 0.3}, 0.3), ({"init_scale": 0.1}, 3), ({"label_scale": None}, 1)],
)
def test_label_embeddings_start_at_their_scale_however_the_rest_does(options, scale):
    assert embeddings(new_m2(500, **options)) == pytest.approx(scale, rel=0.05)


def test_m2_on_latents_starts_near_zero_and_describes_the_active_ones_alone(m1, stripes):
    m1.encoder.network.output.weight.data[1] = 0  # the second of three latents says nothing
    of_latents = partial(build_m1m2, m1, stripes.train_images, 500, 2, (20,))
    assert of_latents().active.tolist() == [0, 2]
    assert of_latents().m1 is not m1
    assert torch.cat([p.flatten() for p in of_latents().m2.parameters()]).std().item() == pytest.approx(1e-3, rel=0.05)
    assert embeddings(of_latents(init_scale=None).m2) == pytest.approx(1, rel=0.05)
    nn.init.zeros_(m1.encoder.network.output.weight)
    with pytest.raises(ValueError, match="train it longer"):
        of_latents()
