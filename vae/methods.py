"""The semi-supervised methods that `vae.sweep` compares, each trained on one draw of labels, with their settings.

A method takes a `Task`, trains, and returns a function that classifies images, (N, 784) -> (N,), and the history of
its training, one dict an epoch. The settings were chosen with 100 labels, for `m1m2_skips` also with 3,000, on the
validation images and another draw of labels (seed 1000). In M2 and M1+M2, α = `alpha` · N.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from vae.data import MNIST, SemiSupervisedBatches, binarize
from vae.models import VAE
from vae.networks import Classifier
from vae.stages import build_m1m2, build_m2, classifier_from_m1, fit_labels, m1_settings, train_m1m2, train_m2

_BATCHES = {"batch_labeled": 100, "batch_unlabeled": 200}
_LABELS_ONLY = _BATCHES | {"classifier_dims": [500, 500], "epochs": {"labels": 8}, "lr": 1e-3}
_ON_M1 = {"m1": m1_settings(smoke=False)}
_M2 = _BATCHES | {"z_dim": 50, "k": 1} | _ON_M1
SETTINGS = {
    "mlp": _LABELS_ONLY,
    "m1mlp": _LABELS_ONLY | _ON_M1,
    "m1knn": _ON_M1,
    "m1svm": {"C": 1} | _ON_M1,
    "m1spread": {"num_unlabeled": 20_000, "neighbors": 10, "alpha": 0.8} | _ON_M1,
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
        "epochs": {"labels": 2, "stopped": 6, "released": 6, "joint": 16},
        "lr": 3e-3,
        "joint_lr": 2e-3,
    },
}
SETTINGS["m1m2_skips"] = SETTINGS["m1m2"] | {
    "skips": True,
    "epochs": {"labels": 2, "stopped": 6, "released": 6, "labels of images": 2, "joint": 48},
}

# Variants of the method that starts the name. First, with one thing undone; then with all, also summed exactly.
UNDONE = {
    "m2_small_columns": {"label_scale": 0.1},
    "m2_unstopped": {"epochs": {"labels": 2, "stopped": 0, "released": 18}},
    "m2_from_scratch": {"classifier_from_m1": False},
    "m2_one_layer": {"hidden_dims": [500]},
    "m2_weak_labels": {"alpha": 0.1},
}
UNDONE["m2_naive"] = {key: value for change in UNDONE.values() for key, value in change.items()}
UNDONE["m2_naive_exact"] = UNDONE["m2_naive"] | {"k": 9}  # nine labels summed; the only other one stands for itself
# With one thing more.
MORE = {
    "m2_longer": {"epochs": {"labels": 2, "stopped": 3, "released": 75}},
    "m1m2_longer": {"epochs": {"labels": 2, "stopped": 6, "released": 6, "joint": 64}},
    "m2_bf16": {"bf16": True},
}
VARIANTS = UNDONE | MORE
SETTINGS |= {name: SETTINGS[name.partition("_")[0]] | change for name, change in VARIANTS.items()}


def settings_of(method, smoke=False):
    """Return the settings of `method`, with those of the M1 that it builds on; for a smoke run, of fewer epochs."""
    settings = SETTINGS[method]
    if smoke and "epochs" in settings:
        settings = settings | {"epochs": {stage: min(epochs, 1) for stage, epochs in settings["epochs"].items()}}
    if smoke and "m1" in settings:
        settings = settings | {"m1": m1_settings(smoke)}
    return settings


@dataclass
class Task:
    """The data, the indices of the training images with and without label, a trained M1, and the settings.

    `state` is the folder for what a killed run resumes from.
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


def _labels_only(classifier, learner, task):
    batches = task.batches(task.mnist.train_images, binarize)
    history = fit_labels(classifier, learner, batches, task.settings, task.state)
    return classifier.classify, history


def mlp(task):
    """A classifier of pixels, trained on the labels alone."""
    classifier = Classifier(784, 10, task.settings["classifier_dims"]).to(task.labels.device)
    return _labels_only(classifier, classifier, task)


def m1mlp(task):
    """The hidden layers of M1's encoder and one layer trained on the labels alone, as M2's classifier is at first."""
    classifier = classifier_from_m1(task.m1, task.settings["classifier_dims"])
    return _labels_only(classifier, classifier.network.rest[-1], task)


def _on_m1(estimator, task, num_unlabeled=0):
    """Fit a scikit-learn classifier on M1's posterior means; it sees unlabelled images with the label −1."""
    # Shuffled, because the split lists them digit by digit.
    order = torch.randperm(len(task.unlabeled), generator=task.generator, device=task.generator.device)
    rows = torch.cat([task.labeled, task.unlabeled[order[:num_unlabeled]]])
    labels = torch.cat([task.labels, torch.full((len(rows) - len(task.labels),), -1, device=rows.device)])

    def means(x):
        with torch.no_grad():
            return task.m1.encoder(x).mean.cpu().numpy()

    estimator.fit(means(task.mnist.train_images[rows]), labels.cpu().numpy())
    return lambda x: torch.from_numpy(estimator.predict(means(x))).to(x.device), []


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


def m2(task):
    """M2 on pixels."""
    model = build_m2(task.settings, task.m1)
    history = train_m2(model, task.batches(task.mnist.train_images, binarize), task.settings, task.state)
    return model.classify, history


def m1m2(task):
    """M2 on M1's latents."""
    images = task.mnist.train_images
    model = build_m1m2(task.settings, task.m1, images)
    feature_batches = task.batches(model.features(images), model.draw)
    history = train_m1m2(model, feature_batches, task.batches(images, binarize), task.settings, task.state)
    return model.classify, history


def m1m2_skips(task):
    """M2 on M1's latents, the label also at the pixels and the classifier at the image."""
    return m1m2(task)


METHODS = {function.__name__: function for function in (mlp, m1mlp, m1knn, m1svm, m1spread, m2, m1m2, m1m2_skips)}
METHODS_AND_VARIANTS = METHODS | {name: METHODS[name.partition("_")[0]] for name in VARIANTS}
