"""How M1, M2 and M1+M2 are built and trained, for any data: stages, each of them one call of `fit`.

Every `train_…` returns the history. A killed run resumes from `folder`, one file a stage; `options` are those of `fit`:
`evaluate`, asked after each epoch; `strict`; `verbose`. [2] is in `vae.objectives`.
"""

import copy
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import nn

from vae import objectives
from vae.data import SemiSupervisedBatches, check_labels
from vae.evaluation import active_latents
from vae.gaussian import DiagonalGaussianDecoder
from vae.marginalization import check_topk, marginalize, marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder
from vae.stacked import StackedSemiSupervisedVAE
from vae.training import Recipe, fit


@dataclass(frozen=True, kw_only=True)
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


def build_m1(x_shape, z_dim=10, hidden_dims=(500, 500), decoder=BernoulliDecoder, network=MLP, decoder_network=None):
    """Return an untrained VAE of x (B, *x_shape), its decoder's layers the encoder's in reverse.

    `decoder_network` is by default `network`.
    """
    likelihood = decoder(z_dim, x_shape, hidden_dims[::-1], network=decoder_network or network)
    return VAE(Encoder(x_shape, z_dim, hidden_dims, network=network), likelihood)


def train_m1(vae, batches, recipe, folder=None, **options):
    """Train a VAE on `Batches`, as an `M1Recipe` says. ValueError for `iwae_epochs` without samples."""
    if recipe.iwae_epochs and recipe.iwae_samples < 1:
        raise ValueError(f"iwae_samples = {recipe.iwae_samples} must be at least 1 where there are iwae_epochs")
    kl_weight = 1.0

    def warm_up(epoch):
        nonlocal kl_weight
        kl_weight = min(1.0, (epoch + 1) / (recipe.warm_up_epochs + 1))

    def negative_elbo(x):
        posterior, likelihood = vae(x)
        return -objectives.elbo(x, posterior, likelihood, vae.prior, kl_weight).mean()

    def negative_iwae_bound(x):
        return -vae.importance_weighted_bound(x, recipe.iwae_samples, objectives.doubly_reparameterized_bound).mean()

    history = []
    if recipe.epochs:
        stage = {"name": "M1", "epochs": recipe.epochs, "before_epoch": warm_up}
        history += fit(negative_elbo, vae, batches, recipe, folder, **stage, **options)
    if recipe.iwae_epochs:
        stage = {"name": "M1 iwae", "epochs": recipe.iwae_epochs}
        history += fit(negative_iwae_bound, vae, batches, recipe, folder, **stage, **options)
    return history


@dataclass(frozen=True, kw_only=True)
class LabelsRecipe(Recipe):
    """A classifier on the labels alone: the supervised baseline, or the linear probe of one from a trained encoder."""

    epochs: int = 8


def train_on_labels(classifier, batches, recipe, folder=None, **options):
    """Train a Classifier on the labeled rows of `SemiSupervisedBatches`: all of it, or what no encoder has trained."""
    loss, learner = label_loss(classifier, batches), classifier.new_layers
    classifier.eval()  # but for what learns
    return fit(loss, learner, batches, recipe, folder, epochs=recipe.epochs, name="labels only", **options)


def label_loss(classifier, batches):
    """Return −log q(y|x), in the mean, as a function of one of `batches`.

    Raises ValueError for other than `SemiSupervisedBatches`, and for labels that the classifier does not know.
    """
    if not isinstance(batches, SemiSupervisedBatches):
        raise ValueError(f"batches must be SemiSupervisedBatches of vae.data, not a {type(batches).__name__}")
    check_labels(batches.y[batches.labeled], batches.num_labeled, classifier.num_classes)

    def loss(batch):
        x, y, _ = batch
        return -classifier(x).log_prob(y).mean()

    return loss


@dataclass(frozen=True, kw_only=True)
class M2Recipe(Recipe):
    """M2 in stages, so that y means the class before the bound of unlabeled images can move it.

    First the classifier learns the labels: all of it, or only its last layer if the others come from M1's encoder. Then
    it is frozen, and encoder and decoder learn from its guesses. Then all learn.
    """

    label_epochs: int = 2
    frozen_epochs: int = 3
    unfrozen_epochs: int = 75
    lr: float = 2e-3
    alpha_per_image: float = 1  # α / N, the weight of the labels' mean cross-entropy [2, equation 9]; the paper has 0.1
    topk: int | None = 1  # labels summed exactly, one more is drawn for all the others; or None: all, exactly


# M2 on M1's latents: all learn from the first step on, as the authors of [2] train M1+M2, at a rate that stays long.
M1M2_RECIPE = M2Recipe(
    label_epochs=0, frozen_epochs=0, unfrozen_epochs=200, lr=1e-3, schedule="falling", weight_prior=1
)


def m2_loss(m2, batches, recipe):
    """Return the loss of M2 as a function of a batch of `SemiSupervisedBatches`: J^α / N [2, equation 9].

    It is minus `objectives.m2_objective`, which is the higher the better. Raises ValueError for a topk of K or more.
    """
    sizes = {"num_labeled": batches.num_labeled, "num_unlabeled": batches.num_unlabeled}
    alpha = recipe.alpha_per_image * batches.num_rows
    sum_over_labels = marginalize
    if recipe.topk is not None:
        check_topk(recipe.topk, m2.num_classes)
        sum_over_labels = partial(marginalize_topk, k=recipe.topk)

    def loss(batch):
        x, y, x_unlabeled = batch
        labeled = m2.labeled_elbo(x, y)
        unlabeled = m2.unlabeled_elbo(x_unlabeled, sum_over_labels) if len(x_unlabeled) else torch.zeros_like(labeled)
        return -objectives.m2_objective(labeled, unlabeled, m2.label_posterior(x).log_prob(y), alpha=alpha, **sizes)

    return loss


def train_m2(m2, batches, recipe, folder=None, **options):
    """Train a SemiSupervisedVAE on `SemiSupervisedBatches`, in the stages of an `M2Recipe`."""
    supervised, both = label_loss(m2.classifier, batches), m2_loss(m2, batches, recipe)
    stages = [  # what learns, by which loss, for how long
        ("labels", m2.classifier.new_layers, supervised, recipe.label_epochs),
        ("frozen", nn.ModuleList([m2.encoder, m2.decoder]), both, recipe.frozen_epochs),
        ("unfrozen", m2, both, recipe.unfrozen_epochs),
    ]
    history = []
    m2.eval()  # but for what learns
    for name, learner, loss, epochs in stages:
        m2.classifier.requires_grad_(name != "frozen")
        if epochs:
            history += fit(loss, learner, batches, recipe, folder, epochs=epochs, name=name, **options)
    return history


def build_m2(
    x_shape,
    num_classes,
    z_dim=50,
    hidden_dims=(500, 500),
    *,
    m1=None,
    classifier_dims=None,
    decoder=BernoulliDecoder,
    network=MLP,
    decoder_network=None,
    init_scale=None,
    label_scale=3,
    label_prior=None,
):
    """Return an untrained M2 of x (B, *x_shape), with networks of `hidden_dims`, on the device of `m1` if there is one.

    The classifier starts with the layers of M1's encoder, if `m1` is given, or has `classifier_dims`, by default
    `hidden_dims`. Parameters start at Normal(0, init_scale²), or where torch starts them, label embeddings at
    Normal(0, label_scale²): large, so that the decoder makes use of y from its first step on (see `vae.networks.MLP`).
    With None they start as all others do. `decoder_network` is by default `network`; p(y), `label_prior`, is uniform.
    """
    encoder = Encoder(x_shape, z_dim, hidden_dims, num_classes, network)
    likelihood = decoder(z_dim, x_shape, hidden_dims, num_classes, network=decoder_network or network)
    if m1 is None:
        classifier = Classifier(x_shape, num_classes, classifier_dims or hidden_dims, network)
    else:
        classifier = classifier_from_encoder(m1.encoder, num_classes)
    m2 = SemiSupervisedVAE(encoder, likelihood, classifier, label_prior)
    if init_scale is not None:
        new_parts = (encoder, likelihood, classifier) if m1 is None else (encoder, likelihood)
        for parameter in chain.from_iterable(part.parameters() for part in new_parts):
            nn.init.normal_(parameter, std=init_scale)
    if label_scale is not None:
        for embedding in (encoder.network.label_embedding, likelihood.network.label_embedding):
            nn.init.normal_(embedding.weight, std=label_scale)
    return m2.to(next(classifier.parameters()).device)


def classifier_from_encoder(encoder, num_classes):
    """Return a Classifier that starts with the layers of a trained encoder; the last one is new, and learns first."""
    dims, network = encoder.arguments["hidden_dims"], encoder.arguments["network"]
    classifier = Classifier(encoder.x_shape, num_classes, dims, network, from_encoder=True)
    layers = {name: value for name, value in encoder.state_dict().items() if not name.startswith("network.output")}
    missing, _ = classifier.load_state_dict(layers, strict=False)
    assert all(name.startswith("network.output") for name in missing)
    return classifier.to(next(encoder.parameters()).device)


def build_m1m2(m1, images, num_classes, z_dim=50, hidden_dims=(500,), **options):
    """Return an untrained M1+M2 on those latents of a copy of `m1` that are active on `images` (N, *X).

    `options` are those of `build_m2`. By default p(z1|y, z2) is a diagonal Normal, and parameters start at
    Normal(0, 0.001²), as the authors' weights do; here biases and label embeddings do, too. Train its `m2` by
    `train_m2`, on `features` of the images. Raises ValueError if no latent is active.
    """
    active = active_latents(m1, images)
    if not len(active):
        raise ValueError("no latent of this M1 says anything of the data; train it longer")
    defaults = {"decoder": DiagonalGaussianDecoder, "init_scale": 1e-3, "label_scale": None}
    m2 = build_m2(len(active), num_classes, z_dim, hidden_dims, **defaults | options)
    return StackedSemiSupervisedVAE(copy.deepcopy(m1), m2, active).to(active.device)
