"""The semi-supervised comparison, row by row: what is trained, on what, with which settings.

A method is a frozen dataclass. Its `train(task, evaluate)` returns a function that classifies images,
(N, *X) -> (N,), the history of its training, one dict an epoch, and the trained model, or None where it is
scikit-learn's. Settings were chosen on MNIST with 100 labels, on the validation images and another draw of labels (seed
1000).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from experiments.m1 import DECODERS, DEEP, NETWORKS, TRANSFORMS, M1Config
from experiments.runner import on_this_machine, shortened, with_recipe
from vae import recipes
from vae.data import NO_LABEL, DataSet, SemiSupervisedBatches, binarize
from vae.models import VAE
from vae.networks import Classifier
from vae.recipes import M1M2_RECIPE, LabelsRecipe, M2Recipe

ESTIMATORS = {"SVC": SVC, "KNeighborsClassifier": KNeighborsClassifier, "LabelSpreading": LabelSpreading}


@dataclass
class Task:
    """The data, the training labels that a method may see, y (N,), −1 for none, and a trained M1 for who builds on one.

    `folder` is for what a killed run resumes from.
    """

    data: DataSet
    y: torch.Tensor
    generator: torch.Generator
    m1: VAE | None
    folder: Path

    def batches(self, rows, method, transform):
        """Return batches of `rows` (N, …), one for each training image, of the method's sizes."""
        labeled_size = method.labeled_batch_size and min(method.labeled_batch_size, int((self.y != NO_LABEL).sum()))
        return SemiSupervisedBatches(rows, self.y, labeled_size, method.unlabeled_batch_size, self.generator, transform)

    def options(self, model, evaluate):
        """Return how `model` is trained: `evaluate(model)` is asked after each epoch, files of another run refused."""
        return {"folder": self.folder, "evaluate": lambda: evaluate(model), "strict": True}


@dataclass(frozen=True)
class Method:
    """What all methods have: `m1` says on which M1 one builds, if it does."""

    m1: M1Config | None = None

    def smoke(self):
        """Return the method with at most one epoch of each stage, and five of M1, which then uses its latents."""
        changes = {"m1": replace(self.m1, recipe=shortened(self.m1.recipe, 5))} if self.m1 else {}
        if hasattr(self, "recipe"):
            changes["recipe"] = shortened(self.recipe)
        return replace(self, **changes)


@dataclass(frozen=True)
class Supervised(Method):
    """A classifier trained on the labels alone; with `m1`, a linear probe: one layer on those of M1's encoder."""

    hidden_dims: tuple = (500, 500)  # without m1
    labeled_batch_size: int = 100
    unlabeled_batch_size: int = 200  # of images that it does not look at: they only say how long an epoch is
    recipe: LabelsRecipe = LabelsRecipe()

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        if self.m1:
            classifier = recipes.classifier_from_encoder(task.m1.encoder, task.data.num_classes)
        else:
            classifier = Classifier(task.data.x_shape, task.data.num_classes, self.hidden_dims).to(task.y.device)
        batches = task.batches(task.data.train_images, self, binarize)
        options = task.options(classifier, evaluate)
        history = recipes.train_on_labels(classifier, batches, on_this_machine(self.recipe), **options)
        return classifier.classify, history, classifier


@dataclass(frozen=True)
class OnLatents(Method):
    """A scikit-learn classifier of M1's posterior means, by its name in ESTIMATORS, made with `options`."""

    m1: M1Config = DEEP
    estimator: str = "SVC"
    options: dict = field(default_factory=dict)
    num_unlabeled: int = 0  # unlabeled images that it sees, with the label −1

    def train(self, task, evaluate=None):
        """Fit it, in one go: there is nothing to evaluate in between."""
        labeled, unlabeled = (task.y != NO_LABEL).nonzero()[:, 0], (task.y == NO_LABEL).nonzero()[:, 0]
        order = torch.randperm(len(unlabeled), generator=task.generator, device=task.generator.device)
        rows = torch.cat([labeled, unlabeled[order[: self.num_unlabeled]]])

        def means(x):
            with torch.no_grad():
                return task.m1.encoder(x).mean.cpu().numpy()

        estimator = ESTIMATORS[self.estimator](**self.options)
        estimator.fit(means(task.data.train_images[rows]), task.y[rows].cpu().numpy())
        return lambda x: torch.from_numpy(estimator.predict(means(x))).to(x.device), [], None


@dataclass(frozen=True)
class M2(Method):
    """M2 on images. With `m1`, the classifier starts with the hidden layers of M1's encoder."""

    m1: M1Config | None = M1Config()
    z_dim: int = 50
    hidden_dims: tuple = (500, 500)
    classifier_dims: tuple = (500, 500)  # without m1
    activation: str = "ReLU"  # one of NETWORKS
    decoder: str = "Bernoulli"  # one of DECODERS
    transform: str = "binarize"  # one of TRANSFORMS
    init_scale: float | None = None
    label_scale: float | None = 3
    labeled_batch_size: int = 100
    unlabeled_batch_size: int = 200
    recipe: M2Recipe = M2Recipe()

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        m2 = recipes.build_m2(
            task.data.x_shape,
            task.data.num_classes,
            self.z_dim,
            self.hidden_dims,
            m1=task.m1 if self.m1 else None,
            classifier_dims=self.classifier_dims,
            decoder=DECODERS[self.decoder],
            network=NETWORKS[self.activation],
            init_scale=self.init_scale,
            label_scale=self.label_scale,
        ).to(task.y.device)
        batches = task.batches(task.data.train_images, self, TRANSFORMS[self.transform])
        history = recipes.train_m2(m2, batches, on_this_machine(self.recipe), **task.options(m2, evaluate))
        return m2.classify, history, m2


@dataclass(frozen=True)
class M1M2(Method):
    """M2 on M1's latents, M1 fixed."""

    m1: M1Config = DEEP
    z_dim: int = 50
    hidden_dims: tuple = (500,)
    labeled_batch_size: int | None = None  # about once in an epoch, as in the authors' code
    unlabeled_batch_size: int = 249
    recipe: M2Recipe = M1M2_RECIPE

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        images = task.data.train_images
        model = recipes.build_m1m2(task.m1, images, task.data.num_classes, self.z_dim, self.hidden_dims)
        batches = task.batches(model.features(images), self, model.draw_latents)
        history = recipes.train_m2(model.m2, batches, on_this_machine(self.recipe), **task.options(model, evaluate))
        return model.classify, history, model


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    title: str
    method: Method


SHORT = M2(recipe=M2Recipe(unfrozen_epochs=15))
SHORT_M1M2 = M1M2(unlabeled_batch_size=499, recipe=replace(M1M2_RECIPE, schedule="one cycle", alpha_per_image=0.1))
NAIVE = M2(
    m1=None,
    hidden_dims=(500,),
    label_scale=0.1,
    recipe=M2Recipe(frozen_epochs=0, unfrozen_epochs=18, alpha_per_image=0.1),
)
PLAIN = M2(  # as the authors train M2 on latents, but on images
    m1=None,
    hidden_dims=(500,),
    classifier_dims=(500,),
    activation="SiLU",
    init_scale=1e-3,
    label_scale=None,
    labeled_batch_size=1,
    unlabeled_batch_size=99,
    recipe=replace(M1M2_RECIPE, unfrozen_epochs=60, lr=3e-4, schedule="constant", alpha_per_image=0.1, bf16=True),
)
SOFTPLUS = replace(
    PLAIN,
    activation="softplus",
    transform="none",
    init_scale=None,
    label_scale=0.05,
    recipe=replace(PLAIN.recipe, unfrozen_epochs=596, topk=None),
)
SPREADING = {"kernel": "knn", "n_neighbors": 10, "alpha": 0.8, "max_iter": 100}

COMPARISON = {  # of all numbers of labels; the keys of this and the next two name files
    "mlp": Row("labels only: MLP", Supervised()),
    "m1mlp": Row("linear probe on M1's encoder", Supervised(m1=DEEP)),
    "m1knn": Row("M1 + nearest neighbour", OnLatents(estimator="KNeighborsClassifier", options={"n_neighbors": 1})),
    "m1svm": Row("M1 + SVM", OnLatents(estimator="SVC", options={"C": 1})),
    "m1spread": Row(
        "M1 + label spreading", OnLatents(estimator="LabelSpreading", options=SPREADING, num_unlabeled=20_000)
    ),
    "m2": Row("M2", M2()),
    "m2_short": Row("M2, short: 15 unfrozen epochs instead of 75", SHORT),
    "m1m2": Row("M1+M2", M1M2()),
    "m1m2_short": Row("M1+M2, short: one cycle of 20,000 updates, α = 0.1 N", SHORT_M1M2),
}
ABLATIONS = {  # with 100 labels, beside the short M2
    "m2_never_frozen": Row(
        "without the stage in which the classifier is frozen",
        with_recipe(SHORT, frozen_epochs=0, unfrozen_epochs=18),
    ),
    "m2_small_embeddings": Row(
        "label embeddings start at Normal(0, 0.1²) instead of 3²", replace(SHORT, label_scale=0.1)
    ),
    "m2_one_layer": Row("one hidden layer in encoder and decoder instead of two", replace(SHORT, hidden_dims=(500,))),
    "m2_from_scratch": Row("the classifier from scratch instead of with M1's layers", replace(SHORT, m1=None)),
    "m2_weak_labels": Row("α = 0.1 N, as in the paper, instead of N", with_recipe(SHORT, alpha_per_image=0.1)),
    "m2_naive": Row("all five: M2 trained naively", NAIVE),
    "m2_naive_exact": Row("the same, the sum over labels exact", with_recipe(NAIVE, topk=None)),
}
STORY = {  # for 30,240 updates; as a published log, for 100,000; and with the sum exact as there, for 300,384
    "m2_plain_60": Row("SiLU, tiny weights, two labels summed", PLAIN),
    "m2_softplus": Row(
        "softplus, two labels summed",
        replace(with_recipe(SOFTPLUS, unfrozen_epochs=1000, topk=1), unlabeled_batch_size=499),
    ),
    "m2_softplus_exact": Row("softplus, the sum exact", SOFTPLUS),
}
BY_KEY = COMPARISON | ABLATIONS | STORY
