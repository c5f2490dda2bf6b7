"""The stages in which M1, M2 and M1+M2 are trained: what each minimizes, which networks move, what is recorded."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_models import seeded
from torch import nn
from torch.distributions import kl_divergence
from torch.testing import assert_close

from vae import recipes
from vae.checkpoint import OtherRunError
from vae.conv import ConvNet
from vae.data import Batches, SemiSupervisedBatches, binarize
from vae.marginalization import marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder
from vae.recipes import LabelsRecipe, M1M2Recipe, M1Recipe, M2Recipe
from vae.training import fit

SHAPE, PARTS = (1, 4, 6), ("weight", "bias")
QUICK = M2Recipe(label_epochs=1, frozen_epochs=1, unfrozen_epochs=1, lr=1e-3, linear_probe=False)
JOINT = M1M2Recipe(label_epochs=1, frozen_epochs=1, unfrozen_epochs=1, lr=1e-3, joint_epochs=1, joint_lr=1e-4)


@pytest.fixture
def m1():
    """Untrained, but its latents tell images apart."""
    m1 = VAE(Encoder(SHAPE, 3, (20,)), BernoulliDecoder(3, SHAPE, (20,)))
    nn.init.normal_(m1.encoder.network.output.weight)
    return m1


def new_m2(num_classes=3, hidden_dims=(20,)):
    encoder = Encoder(SHAPE, 2, hidden_dims, num_classes)
    decoder = BernoulliDecoder(2, SHAPE, hidden_dims, num_classes)
    return SemiSupervisedVAE(encoder, decoder, Classifier(SHAPE, num_classes, (20,)))


@pytest.fixture
def both_kinds(stripes):
    """A function that returns batches with 12 labels, 6 in a batch, and 228 rows without, 40 in a batch."""

    def both_kinds(rows=stripes.train_images, transform=binarize, num_classes=3, first_label=0):
        labels, generator = (first_label + torch.arange(12)) % num_classes, torch.Generator().manual_seed(0)
        return SemiSupervisedBatches(rows[:12], labels, rows[12:], 6, 40, generator, transform)

    return both_kinds


@pytest.fixture
def watch(monkeypatch):
    """A function that makes `fit` note for each stage what it minimizes, its rate, and what moves of a module."""

    def watch(module):
        stages, fit = {}, recipes.fit

        def noting(loss, learner, batches, *, name, lr, **options):
            before = {key: p.clone() for key, p in module.named_parameters()}
            history = fit(loss, learner, batches, name=name, lr=lr, **options)
            moved = {key for key, p in module.named_parameters() if not torch.equal(p, before[key])}
            stages[name] = {"loss": loss, "lr": lr, "moved": moved, "networks": {k.partition(".net")[0] for k in moved}}
            stages[name]["before_epoch"] = options["before_epoch"]
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
    recipe = replace(QUICK, unfrozen_epochs=3)
    history = recipes.train_m2(m2, both_kinds(), recipe, tmp_path, lambda: {"number": next(epochs)})
    everything = {"encoder", "decoder", "classifier"}
    expected = {"labels": {"classifier"}, "frozen": everything - {"classifier"}, "unfrozen": everything}
    assert {name: stage["networks"] for name, stage in stages.items()} == expected
    assert {stage["lr"] for stage in stages.values()} == {1e-3}
    assert all(p.requires_grad for p in m2.parameters())
    assert [epoch["number"] for epoch in history] == [0, 1, 2, 3, 4]
    assert {path.stem for path in tmp_path.iterdir()} == expected.keys()
    stages.clear()
    recipes.train_m2(m2, both_kinds(), replace(QUICK, frozen_epochs=0))
    assert list(stages) == ["labels", "unfrozen"]


@pytest.mark.parametrize("skips", [False, True])
def test_m1m2_trains_m2_on_fixed_latents_then_everything_on_images(skips, m1, stripes, both_kinds, watch):
    """With skips, the classifier of images learns its last layer first, and that of latents is left behind."""
    before, images = copy.deepcopy(m1.state_dict()), stripes.train_images
    model = stacked = recipes.build_m1m2(m1, images, 3, 2, (20,))
    if skips:
        model = recipes.add_skips(stacked, Classifier(SHAPE, 3, (20,)))
    stages = watch(nn.ModuleDict({"stacked": stacked, "model": model}))
    features, recipe = both_kinds(model.features(images), model.draw), replace(JOINT, probe_epochs=int(skips))
    assert len(recipes.train_m1m2(model, stacked.m2, features, both_kinds(), recipe)) == len(stages) == 4 + skips
    m2 = {"stacked.m2.encoder", "stacked.m2.decoder"}
    of_m1 = {"stacked.m1.encoder", "model.m1.decoder" if skips else "stacked.m1.decoder"}
    of_latents, of_images = {"stacked.m2.classifier"}, {"model.classifier"} if skips else {"stacked.m2.classifier"}
    expected = {"labels": of_latents, "frozen": m2, "unfrozen": m2 | of_latents, "joint": m2 | of_m1 | of_images}
    expected |= {"probe": of_images} if skips else {}
    assert {name: stage["networks"] for name, stage in stages.items()} == expected
    assert [stage["lr"] for stage in stages.values()] == [1e-3] * (len(stages) - 1) + [1e-4]
    assert not skips or stages["probe"]["moved"] == {f"model.classifier.network.output.{part}" for part in PARTS}
    assert_close(m1.state_dict(), before, rtol=0, atol=0)  # what was trained was a copy
    model.train()
    recipes.train_m1m2(model, stacked.m2, features, both_kinds(), replace(recipe, probe_epochs=0, joint_epochs=0))
    assert not any(module.training for module in model.modules())


def test_without_skips_no_classifier_of_images_can_be_probed(m1, stripes, both_kinds):
    stacked = recipes.build_m1m2(m1, stripes.train_images, 3, 2, (20,))
    with pytest.raises(ValueError, match="probe_epochs = 1"):
        recipes.train_m1m2(stacked, stacked.m2, both_kinds(), both_kinds(), replace(JOINT, probe_epochs=1))


@pytest.mark.parametrize("linear_probe", [False, True])
def test_labels_train_all_layers_or_as_a_linear_probe_the_last_alone(linear_probe, watch, both_kinds):
    classifier, m2, probe = Classifier(SHAPE, 3, (20,)), new_m2(), {"linear_probe": linear_probe}
    stages, moved = watch(nn.ModuleList([classifier, m2.classifier])), []
    recipes.train_on_labels(classifier, both_kinds(), LabelsRecipe(epochs=1, **probe))
    moved.append(stages["labels"]["moved"])
    recipes.train_m2(m2, both_kinds(), replace(QUICK, **probe))
    moved.append(stages["labels"]["moved"])
    layers = ["output"] if linear_probe else ["input", "output"]
    assert moved == [{f"{n}.network.{layer}.{part}" for layer in layers for part in PARTS} for n in (0, 1)]


@pytest.mark.parametrize("topk", [1, 2])
def test_the_loss_weighs_labels_by_alpha_for_each_image_of_the_whole_data_set(topk, both_kinds):
    """In value and in gradient; the batch sizes, 6 and 40, say nothing of the 12 images with and 228 without label."""
    m2, batches = new_m2(), both_kinds()
    batch, classifier = next(iter(batches)), list(m2.classifier.parameters())
    x, y, x_unlabeled = batch
    without, weighed = (
        seeded(recipes.m2_loss(m2, batches, replace(QUICK, alpha_per_image=alpha, topk=topk)), batch)
        for alpha in (0, 0.7)
    )
    labeled, unlabeled = seeded(
        lambda: (m2.labeled_elbo(x, y), m2.unlabeled_elbo(x_unlabeled, partial(marginalize_topk, k=topk)))
    )
    assert_close(without, -(12 * labeled.mean() + 228 * unlabeled.mean()) / 240)
    of_labels, difference = -0.7 * m2.classifier(x).log_prob(y).mean(), weighed - without
    assert_close(difference, of_labels, atol=1e-5, rtol=1e-4)
    gradients = (torch.autograd.grad(value, classifier) for value in (difference, of_labels))
    assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("topk", "bf16"), [(1, False), (2, True), (3, False)])
def test_as_many_labels_are_summed_as_the_recipe_says_in_its_precision(topk, bf16, both_kinds):
    """And one label is drawn for all the others."""
    m2, seen = new_m2(num_classes=4), set()
    m2.decoder.network.label_embedding.register_forward_pre_hook(lambda _, arguments: seen.add(arguments[0].shape))
    m2.decoder.network.output.register_forward_hook(lambda layer, x, output: seen.add(output.dtype))
    recipes.train_m2(m2, both_kinds(num_classes=4), replace(QUICK, topk=topk, bf16=bf16))
    assert seen == {(6,), (topk + 1, 40), torch.bfloat16 if bf16 else torch.float32}


def test_labels_and_topk_that_do_not_suit_the_number_of_classes_are_refused_before_any_stage(both_kinds, m1, watch):
    m2, stacked = new_m2(), recipes.build_m1m2(m1, both_kinds().unlabeled_rows, 3, 2, (20,))
    stages = watch(m2)
    for topk, num_classes, complaint in (
        (3, 3, "topk = 3 must lie in 1…2, where the last sums over all labels exactly"),
        (0, 3, "topk = 0 must lie in 1…2"),
        (1, 4, "labels must be whole numbers in 0…2.* not 0…3"),
    ):
        batches = both_kinds(num_classes=num_classes)
        with pytest.raises(ValueError, match=complaint):
            recipes.train_m2(m2, batches, replace(QUICK, topk=topk))
        with pytest.raises(ValueError, match=complaint):
            recipes.train_m1m2(stacked, stacked.m2, batches, batches, replace(JOINT, topk=topk))
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
    seeded(partial(fit, epochs=2, lr=M1Recipe().lr), loss, reference, batches())
    assert_close(m1.state_dict(), reference.state_dict())


def test_skips_change_nothing_at_first_and_their_label_then_learns(m1, stripes):
    stacked = recipes.build_m1m2(m1, stripes.train_images, 3, 2, (20,))
    model = recipes.add_skips(stacked, Classifier(SHAPE, 3, (20,)))
    z, y = torch.randn(9, m1.encoder.z_dim), torch.arange(9) % 3
    assert torch.equal(model.decode(z, y).mean, m1.decoder(z).mean)
    model.decode(z, y).mean.sum().backward()
    assert model.m1.decoder.network.label_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, ["labels", "frozen", "unfrozen"]),
        ({"seed": 1}, []),
        ({"labels": 1}, []),
        ({"hidden_dims": (19,)}, []),
        ({"label_scale": 3}, ["labels"]),  # encoder and decoder only learn later
        ({"alpha_per_image": 0.1}, ["labels"]),
        ({"topk": 2}, ["labels"]),
        ({"weight_prior": 1}, []),
        ({"lr": 2e-3}, []),
        ({"unfrozen_epochs": 2}, ["labels", "frozen"]),
    ],
)
def test_a_stage_is_taken_from_its_checkpoint_only_if_it_would_compute_the_same(
    change, taken, both_kinds, tmp_path, capsys
):
    def run(folder, *, seed=0, labels=0, label_scale=0.1, hidden_dims=(20,), **changes):
        torch.manual_seed(seed)
        m2 = recipes.init_label_embeddings(new_m2(hidden_dims=hidden_dims), label_scale)
        batches = both_kinds(first_label=labels)
        recipes.train_m2(m2, batches, replace(QUICK, **changes), folder)
        return m2.state_dict()

    run(tmp_path)
    capsys.readouterr()
    assert_close(run(str(tmp_path), **change), run(None, **change), rtol=0, atol=0)
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told if "not trained" in line] == taken
    assert sum("training anew" in line for line in told) == 3 - len(taken)
    with pytest.raises(OtherRunError, match=r"labels\.pt is of another run: .*; delete it to start over"):
        recipes.train_m2(new_m2(), both_kinds(), replace(QUICK, lr=0.1), tmp_path, strict=True)


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


def test_parameters_start_at_their_scale_and_only_active_latents_are_described(m1, stripes):
    m1.encoder.network.output.weight.data[1] = 0  # the second of three latents says nothing
    stacked = recipes.build_m1m2(m1, stripes.train_images, 500, 2, (20,), init_scale=0.3)
    assert stacked.active.tolist() == [0, 2]
    parameters = torch.cat([p.flatten() for p in stacked.m2.parameters()])
    assert parameters.std().item() == pytest.approx(0.3, rel=0.05)
    assert parameters.mean().item() == pytest.approx(0, abs=0.01)
    # As visible as it is where torch starts decides whether M2 ever uses y.
    as_torch_does = recipes.build_m1m2(m1, stripes.train_images, 500, 2, (20,), init_scale=None).m2
    assert as_torch_does.decoder.network.label_embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    smooth = recipes.build_m1m2(m1, stripes.train_images, 3, 2, (20,), network=partial(MLP, activation=nn.SiLU)).m2
    for part in (smooth.encoder, smooth.decoder, smooth.classifier):
        assert part.network.hidden[0](torch.tensor(-1.0)) < 0  # which a ReLU makes 0
    m2 = recipes.init_label_embeddings(new_m2(num_classes=500), 0.3)
    for network in (m2.encoder, m2.decoder):
        assert network.network.label_embedding.weight.std().item() == pytest.approx(0.3, rel=0.05)
    nn.init.zeros_(m1.encoder.network.output.weight)
    with pytest.raises(ValueError, match="train it longer"):
        recipes.build_m1m2(m1, stripes.train_images, 3, 2, (20,))
