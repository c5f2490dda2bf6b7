"""How M1, M2 and M1+M2 are built and trained, stage by stage, for the notebook and for `vae.methods`.

`settings` are those of a method in `vae.methods`; `state` is the folder for what a killed run resumes from.
"""

import copy
import time
from functools import partial

import torch
from torch import nn

from vae.data import Batches, binarize
from vae.marginalization import marginalize_topk
from vae.models import VAE, SemiSupervisedVAE, SkipSemiSupervisedVAE, StackedSemiSupervisedVAE, active_latents
from vae.networks import BernoulliDecoder, Classifier, Encoder, GaussianDecoder
from vae.objectives import j_alpha
from vae.training import fit

M1_SETTINGS = {"z_dim": 10, "hidden_dims": [500, 500], "epochs": 40, "lr": 2e-3, "batch_size": 200}


def fit_stage(loss_fn, model, batches, stage, settings, state, evaluate=dict):
    """Train one stage for its epochs, which may be 0, and return its history, with the CPU time of each epoch.

    `settings` hold the epochs of every stage, "lr", and "bf16" where that is so.
    """
    epochs, lr, last = settings["epochs"][stage], settings["lr"], time.process_time()
    if epochs == 0:
        return []

    def cpu_seconds_and_more():
        nonlocal last
        before, last = last, time.process_time()
        return {"cpu_seconds": last - before, **evaluate()}

    where = {"checkpoint": state / f"{stage}.pt", "name": stage, "bf16": settings.get("bf16", False)}
    watched = {"evaluate": cpu_seconds_and_more, "settings": {"method": settings}}
    return fit(loss_fn, model, batches, epochs=epochs, lr=lr, **watched, **where)


def m1_settings(smoke):
    """Return the settings of M1; for a smoke run, with ten epochs."""
    return M1_SETTINGS | ({"epochs": 10} if smoke else {})


def train_m1(mnist, checkpoint, smoke=False):
    """Return M1 trained on the training images, for which it needs no label; from `checkpoint` where it is finished."""
    s, device = m1_settings(smoke), mnist.train_images.device
    torch.manual_seed(0)
    vae = VAE(Encoder(784, s["z_dim"], s["hidden_dims"]), BernoulliDecoder(s["z_dim"], 784, s["hidden_dims"][::-1]))
    vae.to(device)
    batches = Batches(mnist.train_images, s["batch_size"], torch.Generator(device).manual_seed(0), binarize)
    where = {"checkpoint": checkpoint, "name": "M1"}
    fit(lambda x: -vae.elbo(x).mean(), vae, batches, epochs=s["epochs"], lr=s["lr"], **where)
    return vae


def classifier_from_m1(m1, hidden_dims):
    """Return a classifier that starts with the hidden layers of M1's encoder, trained without labels.

    Raises ValueError if M1's encoder has other hidden layers.
    """
    classifier = Classifier(784, 10, hidden_dims)
    *hidden, _, _ = m1.encoder.network.state_dict().items()  # all but the last layer's weight and bias
    own = list(classifier.network.state_dict().items())[:-2]
    if [(name, value.shape) for name, value in own] != [(name, value.shape) for name, value in hidden]:
        raise ValueError(f"a classifier with hidden_dims = {hidden_dims} cannot take over this M1's hidden layers")
    classifier.network.load_state_dict(dict(hidden), strict=False)  # all but the last layer
    return classifier.to(m1.prior_mean.device)


def _scale_label_columns(m2, scale):
    for network in (m2.encoder.network, m2.decoder.network):
        nn.init.normal_(network.label_column.weight, std=scale)


def build_m2(settings, m1):
    """Return an untrained M2 on pixels; `m1` is where its classifier takes hidden layers from, if it does."""
    z_dim, dims, classifier_dims = settings["z_dim"], settings["hidden_dims"], settings["classifier_dims"]
    from_m1 = settings["classifier_from_m1"]
    m2 = SemiSupervisedVAE(
        Encoder(784, z_dim, dims, num_classes=10),
        BernoulliDecoder(z_dim, 784, dims, num_classes=10),
        classifier_from_m1(m1, classifier_dims) if from_m1 else Classifier(784, 10, classifier_dims),
    )
    _scale_label_columns(m2, settings["label_scale"])
    return m2.to(m1.prior_mean.device)


def build_m1m2(settings, m1, images):
    """Return an untrained M2 on those latents of a copy of `m1` that say something of `images` (N, 784).

    With settings["skips"], M1's decoder takes the label, too, in a column that starts at 0, so that M1 is what it was,
    and a classifier, with the hidden layers of M1's encoder at first, sees the image. Raises ValueError if no latent
    says anything, or M1's encoder has other hidden layers than in `M1_SETTINGS`.
    """
    z_dim, dims, active = settings["z_dim"], settings["hidden_dims"], active_latents(m1, images)
    if not len(active):
        raise ValueError("no latent of this M1 says anything of the data; train it longer")
    m2 = SemiSupervisedVAE(
        Encoder(len(active), z_dim, dims, num_classes=10),
        GaussianDecoder(z_dim, len(active), dims, num_classes=10),
        Classifier(len(active), 10, settings["classifier_dims"]),
    )
    _scale_label_columns(m2, settings["label_scale"])
    m1 = copy.deepcopy(m1)
    if not settings.get("skips"):
        return StackedSemiSupervisedVAE(m1, m2, active).to(active.device)
    image_classifier = classifier_from_m1(m1, M1_SETTINGS["hidden_dims"])
    column = torch.zeros(10, m1.decoder.network.first.out_features)
    m1.decoder.network.label_column = nn.Embedding.from_pretrained(column, freeze=False)
    return SkipSemiSupervisedVAE(m1, m2, active, image_classifier).to(active.device)


def fit_labels(classifier, learner, batches, settings, state, evaluate=dict, stage="labels"):
    """Train `learner`, the classifier or a part of it, on the labelled images alone, and return the history.

    `stage` names its epochs in `settings` and its checkpoint.
    """

    def loss(batch):
        x, y, _ = batch
        return -classifier(x).log_prob(y).mean()

    return fit_stage(loss, learner, batches, stage, settings, state, evaluate)


def _m2_loss(model, batches, settings):
    """Return the loss of M2, or of M1+M2, for `batches` of both kinds: −J^α / N."""
    sizes = {"num_labeled": len(batches.rows), "num_unlabeled": len(batches.unlabeled_rows)}
    topk, alpha = partial(marginalize_topk, k=settings["k"]), settings["alpha"] * sum(sizes.values())

    def loss(batch):
        x, y, x_unlabeled = batch
        bounds = model.labeled_elbo(x, y), model.unlabeled_elbo(x_unlabeled, topk)
        return -j_alpha(*bounds, model.classifier(x).log_prob(y), alpha=alpha, **sizes)

    return loss


def train_m2(m2, batches, settings, state, evaluate=dict):
    """Train M2 in stages, so that y means the digit before the bound of unlabelled images can move it.

    First the classifier learns the labels: all of it, or only its last layer if M1 has taught it the others. Then it
    stops, and encoder and decoder learn from its guesses. Then everything learns together. Returns the history.
    """
    loss = _m2_loss(m2, batches, settings)
    learner = m2.classifier.network.rest[-1] if settings["classifier_from_m1"] else m2.classifier
    history = fit_labels(m2.classifier, learner, batches, settings, state, evaluate)
    for stage in ("stopped", "released"):
        m2.classifier.requires_grad_(stage == "released")
        history += fit_stage(loss, m2, batches, stage, settings, state, evaluate)
    return history


def train_m1m2(stacked, feature_batches, batches, settings, state, evaluate=dict):
    """Train M2 on the latents of the trained M1, in the stages of M2; then both together, on pixels.

    Between the two, with skips, the last layer of the classifier of images learns the labels. Returns the history.
    `feature_batches` and `batches` hold the same images, as features and as pixels.
    """
    history = train_m2(stacked.m2, feature_batches, settings, state, evaluate)
    if isinstance(stacked, SkipSemiSupervisedVAE):
        classifier, stage = stacked.image_classifier, "labels of images"
        last_layer = classifier.network.rest[-1]
        history += fit_labels(classifier, last_layer, batches, settings, state, evaluate, stage=stage)
    loss, settings = _m2_loss(stacked, batches, settings), settings | {"lr": settings["joint_lr"]}
    return history + fit_stage(loss, stacked, batches, "joint", settings, state, evaluate)
