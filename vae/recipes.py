"""How M1, M2 and M1+M2 are trained, for any data: stages, each of them one call of `fit`.

`folder` is where a killed run resumes from, one checkpoint a stage; `evaluate` and `strict` are those of `fit`.
Every function that trains returns the history.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from vae import objectives
from vae.data import check_labels
from vae.evaluation import active_latents
from vae.gaussian import DiagonalGaussianDecoder
from vae.marginalization import check_topk, marginalize_topk
from vae.models import VAE, ConditionalVAE, SemiSupervisedVAE
from vae.networks import MLP, Classifier, Encoder
from vae.stacked import SkipSemiSupervisedVAE, StackedSemiSupervisedVAE
from vae.training import fit


class Stage(NamedTuple):
    """Some epochs in which `learner`, a model or a part of one, minimizes `loss` of each of `batches`; 0 skip it."""

    name: str
    epochs: int
    lr: float
    loss: object
    learner: nn.Module
    batches: object
    frozen: nn.Module = nn.Module()  # a part of `learner` that does not learn
    before_epoch: object = lambda epoch: None


def run_stages(stages, recipe, folder, evaluate, strict):
    """Train one stage after the other."""
    history, options = [], {"evaluate": evaluate, "strict": strict}
    options |= {"bf16": recipe.bf16, "one_cycle": recipe.one_cycle}
    for name, epochs, lr, loss, learner, batches, frozen, before_epoch in (stage for stage in stages if stage.epochs):
        options |= {"weight_decay": recipe.weight_prior / batches.num_rows, "before_epoch": before_epoch}
        where = {"name": name, "checkpoint": folder and Path(folder) / f"{name}.pt"}
        frozen.requires_grad_(False)
        try:
            history += fit(loss, learner, batches, epochs=epochs, lr=lr, **where, **options)
        finally:
            frozen.requires_grad_(True)
    return history


@dataclass(frozen=True)
class Recipe:
    """What all recipes have.

    The prior on the networks' weights is Normal(0, 1 / weight_prior), 1 in both papers, and 0 for none: what training
    maximizes is then log p(weights) / N more, N training images.
    """

    lr: float = 1e-3
    one_cycle: bool = True  # or a constant learning rate
    weight_prior: float = 0
    bf16: bool = False


@dataclass(frozen=True)
class M1Recipe(Recipe):
    """M1: epochs with the ELBO, then with the importance-weighted bound.

    In the first `warm_up_epochs` the KL divergence counts less, in even steps up to 1, so that latents stay in use that
    would be given up early (Sønderby et al. 2016, arXiv:1602.02282).
    """

    warm_up_epochs: int = 0
    epochs: int = 40
    iwae_epochs: int = 0
    iwae_samples: int = 0  # draws of z per image in the last of these stages
    lr: float = 2e-3


def train_m1(vae, batches, recipe, folder=None, evaluate=dict, strict=False):
    """Train a VAE on `Batches` of images."""

    kl_weight = 1.0

    def warm_up(epoch):
        nonlocal kl_weight
        kl_weight = min(1.0, (epoch + 1) / (recipe.warm_up_epochs + 1))

    def negative_elbo(x):
        posterior, likelihood = vae(x)
        return -objectives.elbo(x, posterior, likelihood, vae.prior, kl_weight).mean()

    def negative_weighted_bound(x):
        return -vae.importance_weighted_bound(x, recipe.iwae_samples, objectives.doubly_reparameterized_bound).mean()

    stages = [
        Stage("M1", recipe.epochs, recipe.lr, negative_elbo, vae, batches, before_epoch=warm_up),
        Stage("M1 iwae", recipe.iwae_epochs, recipe.lr, negative_weighted_bound, vae, batches),
    ]
    return run_stages(stages, recipe, folder, evaluate, strict)


@dataclass(frozen=True)
class LabelsRecipe(Recipe):
    """A classifier on the labels alone: the supervised baseline, or with `linear_probe` its last layer only."""

    epochs: int = 8
    linear_probe: bool = False


def train_on_labels(classifier, batches, recipe, folder=None, evaluate=dict, strict=False):
    """Train a Classifier on the labeled images of `SemiSupervisedBatches`."""
    stage = _labels_stage("labels", recipe.epochs, recipe.lr, classifier, recipe.linear_probe, batches)
    return run_stages([stage], recipe, folder, evaluate, strict)


def _labels_stage(name, epochs, lr, classifier, linear_probe, batches):
    def cross_entropy(batch):
        x, y, _ = batch
        return -classifier(x).log_prob(y).mean()

    check_labels(batches.labels, batches.num_labeled, classifier.num_classes)
    return Stage(name, epochs, lr, cross_entropy, classifier.network.output if linear_probe else classifier, batches)


@dataclass(frozen=True)
class M2Recipe(Recipe):
    """M2 in stages, so that y means the class before the bound of unlabeled images can move it.

    First the classifier learns the labels: all of it, or with `linear_probe` its last layer alone, as is right for one
    of `classifier_from_encoder`. Then it is frozen, and encoder and decoder learn from its guesses. Then all learn.
    """

    label_epochs: int = 2
    frozen_epochs: int = 3
    unfrozen_epochs: int = 15
    lr: float = 2e-3
    alpha_per_image: float = 1  # α / N: what the labels' cross-entropy weighs [2, equation 9]; 0.1 in the paper
    topk: int = 1  # labels summed exactly; one more is drawn for all the others
    linear_probe: bool = False


def m2_loss(model, batches, recipe, marginalize=None):
    """Return the loss of M2 or M1+M2 as a function of a batch of `SemiSupervisedBatches`: J^α / N [2, equation 9].

    It is minus `objectives.m2_objective`, which is the higher the better. The sum over labels is the recipe's, by
    `marginalize_topk`, unless another `marginalize` is given.
    """
    check_topk(recipe.topk, model.num_classes)
    sizes = {"num_labeled": batches.num_labeled, "num_unlabeled": batches.num_unlabeled}
    alpha = recipe.alpha_per_image * batches.num_rows
    marginalize = marginalize or partial(marginalize_topk, k=recipe.topk)

    def loss(batch):
        x, y, x_unlabeled = batch
        bounds = model.labeled_elbo(x, y), model.unlabeled_elbo(x_unlabeled, marginalize)
        return -objectives.m2_objective(*bounds, model.label_posterior(x).log_prob(y), alpha=alpha, **sizes)

    return loss


def train_m2(m2, batches, recipe, folder=None, evaluate=dict, strict=False):
    """Train a SemiSupervisedVAE on `SemiSupervisedBatches`, in the stages of its `M2Recipe`."""
    return run_stages(_m2_stages(m2, batches, recipe), recipe, folder, evaluate, strict)


def _m2_stages(m2, batches, recipe):
    loss, lr = m2_loss(m2, batches, recipe), recipe.lr
    return [
        _labels_stage("labels", recipe.label_epochs, lr, m2.classifier, recipe.linear_probe, batches),
        Stage("frozen", recipe.frozen_epochs, lr, loss, m2, batches, frozen=m2.classifier),
        Stage("unfrozen", recipe.unfrozen_epochs, lr, loss, m2, batches),
    ]


@dataclass(frozen=True)
class M1M2Recipe(M2Recipe):
    """M1+M2: M2 on M1's latents, M1 fixed, as the authors of [2] train it; then M1 and M2 together on images, if asked.

    Between the two, with skips, the last layer of the classifier of images learns the labels for `probe_epochs`.
    """

    label_epochs: int = 0
    frozen_epochs: int = 0
    unfrozen_epochs: int = 200
    lr: float = 1e-3
    alpha_per_image: float = 0.1
    weight_prior: float = 1
    probe_epochs: int = 0
    joint_epochs: int = 0
    joint_lr: float = 2e-3


def train_m1m2(model, m2, feature_batches, batches, recipe, folder=None, evaluate=dict, strict=False):
    """Train M1+M2, with or without skips; `m2` is the M2 of latents of the StackedSemiSupervisedVAE that it is, or was.

    `feature_batches` and `batches` hold the same images, as `model.features` and as pixels. Raises ValueError for
    `probe_epochs` without skips: there no classifier sees images.
    """
    stages = _m2_stages(m2, feature_batches, recipe)
    if isinstance(model, SkipSemiSupervisedVAE):
        stages += [_labels_stage("probe", recipe.probe_epochs, recipe.lr, model.classifier, True, batches)]
    elif recipe.probe_epochs:
        raise ValueError(f"probe_epochs = {recipe.probe_epochs}: only M1+M2 with skips has a classifier of images")
    stages += [Stage("joint", recipe.joint_epochs, recipe.joint_lr, m2_loss(model, batches, recipe), model, batches)]
    history = run_stages(stages, recipe, folder, evaluate, strict)
    model.eval()  # also what was not trained
    return history


def classifier_from_encoder(encoder, num_classes):
    """Return a Classifier that starts with the layers of a trained encoder; the last one is new."""
    made_with = encoder.arguments
    classifier = Classifier(encoder.x_shape, num_classes, made_with["hidden_dims"], made_with["network"])
    return _like(classifier, encoder, but="network.output")


def _like(module, trained, but):
    """Return the new `module` with the parameters of a trained one, but for those that start with `but`."""
    state = {name: value for name, value in trained.state_dict().items() if not name.startswith(but)}
    missing, _ = module.load_state_dict(state, strict=False)
    assert all(name.startswith(but) for name in missing)
    return module.to(next(trained.parameters()).device)


def init_parameters(module, scale):
    """Draw every parameter from Normal(0, scale²), and return the module; 0.001 for weights in the code of [2]."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=scale)
    return module


def init_label_embeddings(model, scale):
    """Draw the label embeddings of an M2's encoder and decoder from Normal(0, scale²), and return the model.

    Large ones, so that the decoder makes use of y from its first step; see `vae.networks.MLP`.
    """
    for network in (model.encoder.network, model.decoder.network):
        nn.init.normal_(network.label_embedding.weight, std=scale)
    return model


def build_m1m2(
    m1,
    images,
    num_classes,
    z_dim,
    hidden_dims,
    init_scale=1e-3,
    make_decoder=DiagonalGaussianDecoder,
    network=MLP,
):
    """Return an untrained M1+M2 on those latents of a copy of `m1` that are active on `images` (N, *X).

    The parameters of M2 start at Normal(0, init_scale²), or where torch starts them if it is None. Raises ValueError if
    no latent is active.
    """
    active = active_latents(m1, images)
    if not len(active):
        raise ValueError("no latent of this M1 says anything of the data; train it longer")
    encoder = Encoder(len(active), z_dim, hidden_dims, num_classes, network)
    decoder = make_decoder(z_dim, len(active), hidden_dims, num_classes, network)
    m2 = SemiSupervisedVAE(encoder, decoder, Classifier(len(active), num_classes, hidden_dims, network))
    if init_scale is not None:
        init_parameters(m2, init_scale)
    return StackedSemiSupervisedVAE(copy.deepcopy(m1), m2, active).to(active.device)


def add_skips(stacked, classifier):
    """Return M1+M2 with skips, made of the networks of an M1+M2 and a Classifier of images.

    M1's decoder takes the label from now on, through embeddings that start at 0, so that M1 is what it was.
    """
    m1, m2, embedding = stacked.m1, stacked.m2, "network.label_embedding"
    decoder = _like(m1.decoder.again(num_classes=m2.num_classes), m1.decoder, but=embedding)
    nn.init.zeros_(decoder.network.label_embedding.weight)
    without_classifier = ConditionalVAE(m2.encoder, m2.decoder, m2.num_classes, m2.label_prior.probs)
    model = SkipSemiSupervisedVAE(VAE(m1.encoder, decoder), without_classifier, stacked.active, classifier)
    return model.to(stacked.active.device)
