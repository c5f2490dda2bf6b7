"""The semi-supervised methods that `vae.sweep` compares, each trained on one draw of labels, with their settings.

A method takes a `Task`, trains, and returns a function that classifies images, (N, 784) -> (N,), and the history of
its training, one dict an epoch. The settings were chosen on validation images, with other draws of labels.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC
from torch import nn

from vae.data import MNIST, Batches, SemiSupervisedBatches, binarize
from vae.marginalization import marginalize_topk
from vae.models import VAE, SemiSupervisedVAE, StackedSemiSupervisedVAE, active_latents
from vae.networks import BernoulliDecoder, Classifier, Encoder, GaussianDecoder
from vae.objectives import j_alpha
from vae.training import fit

M1_SETTINGS = {"z_dim": 10, "hidden_dims": [500, 500], "epochs": 40, "lr": 2e-3, "batch_size": 200}
_BATCHES = {"batch_labeled": 100, "batch_unlabeled": 200}
_LABELS_ONLY = _BATCHES | {"classifier_dims": [500, 500], "epochs": {"labels": 8}, "lr": 1e-3}
_M2 = _BATCHES | {"z_dim": 50, "k": 1}
SETTINGS = {
    "mlp": _LABELS_ONLY,
    "m1mlp": _LABELS_ONLY,
    "m1knn": {},
    "m1svm": {"C": 1},
    "m1spread": {"num_unlabeled": 20_000, "neighbors": 10, "alpha": 0.8},
    "m2": _M2
    | {
        "hidden_dims": [500, 500],
        "classifier_dims": [500, 500],
        "classifier_from_m1": True,
        "label_scale": 3,
        "alpha": 1,
        "epochs": {"labels": 2, "stopped": 3, "released": 15},
        "lr": 2e-3,
    },
    "m1m2": _M2
    | {
        "hidden_dims": [500],
        "classifier_dims": [500],
        "classifier_from_m1": False,
        "label_scale": 1,
        "alpha": 1,
        "epochs": {"labels": 2, "stopped": 8, "released": 12},
        "lr": 3e-3,
    },
}

# M2 with one thing undone, each, and with all of them undone.
ABLATIONS = {
    "m2_small_columns": {"label_scale": 0.1},
    "m2_unstopped": {"epochs": {"labels": 2, "stopped": 0, "released": 18}},
    "m2_from_scratch": {"classifier_from_m1": False},
    "m2_one_layer": {"hidden_dims": [500]},
    "m2_weak_labels": {"alpha": 0.1},
}
ABLATIONS["m2_naive"] = {key: value for change in ABLATIONS.values() for key, value in change.items()}
SETTINGS |= {name: SETTINGS["m2"] | change for name, change in ABLATIONS.items()}


def settings_of(method, smoke=False):
    """Return the settings of `method`; for a smoke run, with one epoch of each stage."""
    settings = SETTINGS[method]
    if smoke and "epochs" in settings:
        settings = settings | {"epochs": {stage: min(epochs, 1) for stage, epochs in settings["epochs"].items()}}
    return settings


@dataclass
class Task:
    """The data, the indices of the training images with and without label, a trained M1, and the settings.

    `state` is the path, without an ending, of the files to resume from.
    """

    mnist: MNIST
    labeled: torch.Tensor
    unlabeled: torch.Tensor
    generator: torch.Generator
    m1: VAE
    settings: dict
    state: Path

    @property
    def labels(self):
        """The labels that a method may see, (N,)."""
        return self.mnist.train_labels[self.labeled]

    def batches(self, rows, transform):
        """Return batches of both kinds, made of `rows` (50,000, D), one for each training image."""
        sizes = min(self.settings["batch_labeled"], len(self.labeled)), self.settings["batch_unlabeled"]
        known, unknown = rows[self.labeled], rows[self.unlabeled]
        return SemiSupervisedBatches(known, self.labels, unknown, *sizes, self.generator, transform)

    def fit(self, loss_fn, model, batches, stage):
        """Train one stage for its epochs, which may be 0, and return its history, with the CPU time it took."""
        last = time.process_time()

        def cpu_seconds():
            nonlocal last
            before, last = last, time.process_time()
            return {"cpu_seconds": last - before}

        epochs, lr = self.settings["epochs"][stage], self.settings["lr"]
        if epochs == 0:
            return []
        checkpoint = self.state.with_name(f"{self.state.name}-{stage}.pt")
        kept = {"checkpoint": checkpoint, "reuse": True}
        return fit(loss_fn, model, batches, epochs=epochs, lr=lr, evaluate=cpu_seconds, name=stage, **kept)


def train_m1(mnist, checkpoint, smoke=False):
    """Return M1 trained on the training images, for which it needs no label; from `checkpoint` where it is finished."""
    s = M1_SETTINGS | ({"epochs": 10} if smoke else {})
    torch.manual_seed(0)
    vae = VAE(Encoder(784, s["z_dim"], s["hidden_dims"]), BernoulliDecoder(s["z_dim"], 784, s["hidden_dims"][::-1]))
    batches = Batches(mnist.train_images, s["batch_size"], torch.Generator().manual_seed(0), binarize)
    kept = {"checkpoint": checkpoint, "reuse": True, "name": "M1"}
    fit(lambda x: -vae.elbo(x).mean(), vae, batches, epochs=s["epochs"], lr=s["lr"], **kept)
    return vae


def _classifier_from_m1(m1, hidden_dims):
    """Return a classifier that starts with the hidden layers of M1's encoder, trained without labels."""
    classifier = Classifier(784, 10, hidden_dims)
    *hidden, _, _ = m1.encoder.network.state_dict().items()  # all but the last layer's weight and bias
    classifier.network.load_state_dict(dict(hidden), strict=False)
    return classifier


def _fit_labels(classifier, learner, batches, task):
    """Train the parameters of `learner`, the classifier or a part of it, on the labelled images alone."""
    return task.fit(lambda batch: -classifier(batch[0]).log_prob(batch[1]).mean(), learner, batches, "labels")


def _labels_only(classifier, learner, task):
    history = _fit_labels(classifier, learner, task.batches(task.mnist.train_images, binarize), task)
    return lambda x: classifier(x).logits.argmax(-1), history


def mlp(task):
    """A classifier of pixels, trained on the labels alone."""
    classifier = Classifier(784, 10, task.settings["classifier_dims"])
    return _labels_only(classifier, classifier, task)


def m1mlp(task):
    """The hidden layers of M1's encoder and one layer trained on the labels alone: where M2's classifier starts."""
    classifier = _classifier_from_m1(task.m1, task.settings["classifier_dims"])
    return _labels_only(classifier, classifier.network.rest[-1], task)


def _on_m1(estimator, task, num_unlabeled=0):
    """Fit a scikit-learn classifier on M1's posterior means; it sees unlabelled images with the label −1."""
    order = torch.randperm(len(task.unlabeled), generator=task.generator)  # the split lists them digit by digit
    rows = torch.cat([task.labeled, task.unlabeled[order[:num_unlabeled]]])
    labels = torch.cat([task.labels, torch.full((len(rows) - len(task.labels),), -1)])

    def means(x):
        with torch.no_grad():
            return task.m1.encoder(x).mean.numpy()

    estimator.fit(means(task.mnist.train_images[rows]), labels.numpy())
    return lambda x: torch.from_numpy(estimator.predict(means(x))), []


def m1svm(task):
    """M1's posterior means and a support vector machine."""
    return _on_m1(SVC(C=task.settings["C"]), task)


def m1knn(task):
    """M1's posterior means and the nearest labelled neighbour."""
    return _on_m1(KNeighborsClassifier(n_neighbors=1), task)


def m1spread(task):
    """M1's posterior means and label spreading over a graph of neighbours, labelled and unlabelled."""
    s = task.settings
    estimator = LabelSpreading(kernel="knn", n_neighbors=s["neighbors"], alpha=s["alpha"], max_iter=100)
    return _on_m1(estimator, task, s["num_unlabeled"])


def train_m2(m2, batches, task):
    """Train M2 in stages, so that y means the digit before the bound of unlabelled images can move it.

    First the classifier learns the labels: all of it, or only its last layer if M1 has taught it the others. Then it
    stops, and encoder and decoder learn from its guesses. Then everything learns together. Returns the history.
    """
    s, sizes = task.settings, {"num_labeled": len(task.labeled), "num_unlabeled": len(task.unlabeled)}
    topk = partial(marginalize_topk, k=s["k"])
    for network in (m2.encoder.network, m2.decoder.network):
        nn.init.normal_(network.label_column.weight, std=s["label_scale"])

    def m2_loss(batch):
        x, y, x_unlabeled = batch
        bounds = m2.labeled_elbo(x, y), m2.unlabeled_elbo(x_unlabeled, topk)
        alpha = s["alpha"] * sum(sizes.values())
        return -j_alpha(*bounds, m2.classifier(x).log_prob(y), alpha=alpha, **sizes)

    learner = m2.classifier.network.rest[-1] if s["classifier_from_m1"] else m2.classifier
    history = _fit_labels(m2.classifier, learner, batches, task)
    m2.classifier.requires_grad_(False)
    history += task.fit(m2_loss, m2, batches, "stopped")
    m2.classifier.requires_grad_(True)
    return history + task.fit(m2_loss, m2, batches, "released")


def m2(task):
    """M2 on pixels."""
    s, images = task.settings, task.mnist.train_images
    dims = s["classifier_dims"]
    model = SemiSupervisedVAE(
        Encoder(784, s["z_dim"], s["hidden_dims"], num_classes=10),
        BernoulliDecoder(s["z_dim"], 784, s["hidden_dims"], num_classes=10),
        _classifier_from_m1(task.m1, dims) if s["classifier_from_m1"] else Classifier(784, 10, dims),
    )
    history = train_m2(model, task.batches(images, binarize), task)
    return model.classify, history


def m1m2(task):
    """M2 on M1's latents."""
    s, images = task.settings, task.mnist.train_images
    active = active_latents(task.m1, images)
    model = SemiSupervisedVAE(
        Encoder(len(active), s["z_dim"], s["hidden_dims"], num_classes=10),
        GaussianDecoder(s["z_dim"], len(active), s["hidden_dims"], num_classes=10),
        Classifier(len(active), 10, s["classifier_dims"]),
    )
    stacked = StackedSemiSupervisedVAE(task.m1, model, active)
    history = train_m2(model, task.batches(stacked.features(images), stacked.draw), task)
    return stacked.classify, history


METHODS = {function.__name__: function for function in (mlp, m1mlp, m1knn, m1svm, m1spread, m2, m1m2)}
METHODS_AND_ABLATIONS = METHODS | dict.fromkeys(ABLATIONS, m2)
