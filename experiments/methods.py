"""The semi-supervised methods that are compared: one frozen dataclass each, its settings, and how it is trained.

`train(task)` returns a function that classifies images, (N, *X) -> (N,), the history of its training, one dict an
epoch, and the trained model, or None where it is scikit-learn's. Settings were chosen on MNIST with 100 labels, for
M1+M2 with skips also with 3,000, on the validation images and another draw of labels (seed 1000).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import SVC

from experiments.m1 import DECODERS, DEEP, NETWORKS, TRANSFORMS, M1Config
from experiments.runner import on_this_machine, shortened, with_recipe
from vae.data import DataSet, SemiSupervisedBatches, binarize
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import MLP, Classifier, Encoder
from vae.recipes import (
    LabelsRecipe,
    M1M2Recipe,
    M2Recipe,
    add_skips,
    build_m1m2,
    classifier_from_encoder,
    init_label_embeddings,
    init_parameters,
    train_m1m2,
    train_m2,
    train_on_labels,
)

ESTIMATORS = {"SVC": SVC, "KNeighborsClassifier": KNeighborsClassifier, "LabelSpreading": LabelSpreading}
SPREADING = {"kernel": "knn", "n_neighbors": 10, "alpha": 0.8, "max_iter": 100}  # over a graph of neighbors


@dataclass
class Task:
    """The data, the indices of the training images with and without label, and a trained M1 for who builds on one.

    `folder` is for what a killed run resumes from.
    """

    data: DataSet
    labeled: torch.Tensor
    unlabeled: torch.Tensor
    generator: torch.Generator
    m1: VAE | None
    folder: Path

    @property
    def labels(self):
        """The labels that a method may see, (N,)."""
        return self.data.train_labels[self.labeled]

    def batches(self, rows, method, transform):
        """Return batches of both kinds, made of `rows` (N, …), one for each training image.

        Where the method has no `labeled_batch_size`, or most images have a label, as in a smoke run with 3,000, an
        epoch goes through either kind once.
        """
        known, unknown = rows[self.labeled], rows[self.unlabeled]
        num_batches = max(1, len(unknown) // method.unlabeled_batch_size)
        once = max(1, len(known) // num_batches)
        given = method.labeled_batch_size if len(known) <= len(unknown) else None
        sizes = min(given or once, len(known)), method.unlabeled_batch_size
        return SemiSupervisedBatches(known, self.labels, unknown, *sizes, self.generator, transform)

    def classifier(self, hidden_dims, from_m1, network=MLP):
        """Return an untrained classifier of images, or one that starts with the hidden layers of M1's encoder."""
        if from_m1:
            return classifier_from_encoder(self.m1.encoder, self.data.num_classes)
        return Classifier(self.data.x_shape, self.data.num_classes, hidden_dims, network).to(self.labels.device)


@dataclass(frozen=True)
class Method:
    """What all methods have: `m1` says on which M1 one builds, if it does."""

    m1: M1Config | None = DEEP

    def smoke(self):
        """Return the method with at most one epoch of each stage, and five of M1, which then uses its latents."""
        m1 = self.m1 and replace(self.m1, recipe=shortened(self.m1.recipe, 5))
        return replace(self, m1=m1, **({"recipe": shortened(self.recipe)} if hasattr(self, "recipe") else {}))


@dataclass(frozen=True)
class Supervised(Method):
    """A classifier trained on the labels alone; as a linear probe, one layer on the hidden layers of M1's encoder."""

    hidden_dims: tuple = (500, 500)  # but as a linear probe
    labeled_batch_size: int = 100
    unlabeled_batch_size: int = 200  # of images that it does not look at: they only say how long an epoch is
    recipe: LabelsRecipe = LabelsRecipe()

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        classifier = task.classifier(self.hidden_dims, from_m1=self.recipe.linear_probe)
        batches, recipe = task.batches(task.data.train_images, self, binarize), on_this_machine(self.recipe)
        history = train_on_labels(classifier, batches, recipe, task.folder, lambda: evaluate(classifier), strict=True)
        return classifier.classify, history, classifier


@dataclass(frozen=True)
class OnLatents(Method):
    """A scikit-learn classifier of M1's posterior means, by its name in ESTIMATORS, made with `options`."""

    estimator: str = "SVC"
    options: dict = field(default_factory=dict)
    num_unlabeled: int = 0  # unlabeled images that it sees, with the label −1

    def train(self, task, evaluate=None):
        """Fit it, in one go: there is nothing to evaluate in between."""
        # Shuffled, because the split lists them class by class.
        order = torch.randperm(len(task.unlabeled), generator=task.generator, device=task.generator.device)
        rows = torch.cat([task.labeled, task.unlabeled[order[: self.num_unlabeled]]])
        labels = torch.cat([task.labels, torch.full((len(rows) - len(task.labels),), -1, device=rows.device)])

        def means(x):
            with torch.no_grad():
                return task.m1.encoder(x).mean.cpu().numpy()

        estimator = ESTIMATORS[self.estimator](**self.options)
        estimator.fit(means(task.data.train_images[rows]), labels.cpu().numpy())
        return lambda x: torch.from_numpy(estimator.predict(means(x))).to(x.device), [], None


@dataclass(frozen=True)
class M2(Method):
    """M2 on images. With a linear probe in its first stage, the classifier has the hidden layers of M1's encoder."""

    m1: M1Config | None = M1Config()
    z_dim: int = 50
    hidden_dims: tuple = (500, 500)
    classifier_dims: tuple = (500, 500)  # of a classifier from scratch; with a linear probe, M1's count
    activation: str = "ReLU"  # one of NETWORKS
    decoder: str = "Bernoulli"  # one of DECODERS
    transform: str = "binarize"  # one of TRANSFORMS
    init_scale: float | None = None  # parameters start at Normal(0, init_scale²), or where torch starts them
    label_scale: float | None = 3  # label embeddings start at Normal(0, label_scale²), or as other parameters
    labeled_batch_size: int = 100
    unlabeled_batch_size: int = 200
    recipe: M2Recipe = M2Recipe(linear_probe=True)

    def build(self, task):
        """Return it untrained."""
        x_shape, num_classes = task.data.x_shape, task.data.num_classes
        network = NETWORKS[self.activation]
        encoder = Encoder(x_shape, self.z_dim, self.hidden_dims, num_classes, network)
        decoder = DECODERS[self.decoder](self.z_dim, x_shape, self.hidden_dims, num_classes, network=network)
        classifier = task.classifier(self.classifier_dims, self.recipe.linear_probe, network)
        m2 = SemiSupervisedVAE(encoder, decoder, classifier)
        if self.init_scale is not None:
            init_parameters(m2, self.init_scale)
        if self.label_scale is not None:
            init_label_embeddings(m2, self.label_scale)
        return m2.to(task.labels.device)

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        m2, batches = self.build(task), task.batches(task.data.train_images, self, TRANSFORMS[self.transform])
        history = train_m2(m2, batches, on_this_machine(self.recipe), task.folder, lambda: evaluate(m2), strict=True)
        return m2.classify, history, m2


@dataclass(frozen=True)
class M1M2(Method):
    """M2 on M1's latents; with `skips`, in the last stages the label is also at the pixels, the classifier at x."""

    z_dim: int = 50
    hidden_dims: tuple = (500,)
    activation: str = "ReLU"  # M2's, one of NETWORKS
    init_scale: float | None = 1e-3  # M2's parameters start at Normal(0, init_scale²), or where torch starts them
    decoder: str = "diagonal Gaussian"  # p(z1|y, z2), one of DECODERS
    skips: bool = False
    labeled_batch_size: int | None = None  # with 100 labels one; or all of them in an epoch, as in the authors' code
    unlabeled_batch_size: int = 499
    recipe: M1M2Recipe = M1M2Recipe()

    def train(self, task, evaluate=lambda model: {}):
        """Train it; `evaluate(model)` is asked after each epoch."""
        images = task.data.train_images
        sizes = task.data.num_classes, self.z_dim, self.hidden_dims
        made_of = DECODERS[self.decoder], NETWORKS[self.activation]
        model = stacked = build_m1m2(task.m1, images, *sizes, self.init_scale, *made_of)
        if self.skips:
            model = add_skips(stacked, task.classifier(self.m1.hidden_dims, from_m1=True))
        features = task.batches(model.features(images), self, model.draw)
        batches = task.batches(images, self, TRANSFORMS[self.m1.transform])
        recipe, where = on_this_machine(self.recipe), (task.folder, lambda: evaluate(model))
        history = train_m1m2(model, stacked.m2, features, batches, recipe, *where, strict=True)
        return model.classify, history, model


_M2, _M1M2 = M2(), M1M2()
_JOINT = M1M2(  # on an M1 of ten latents, in stages, the last of which trains M1, too
    m1=M1Config(),
    init_scale=None,
    decoder="Gaussian",
    labeled_batch_size=100,
    unlabeled_batch_size=200,
    recipe=M1M2Recipe(
        lr=3e-3,
        weight_prior=0,
        label_epochs=2,
        frozen_epochs=6,
        unfrozen_epochs=6,
        alpha_per_image=1,
        joint_epochs=16,
    ),
)
METHODS = {
    "mlp": Supervised(m1=None),
    "m1mlp": Supervised(recipe=LabelsRecipe(linear_probe=True)),
    "m1knn": OnLatents(estimator="KNeighborsClassifier", options={"n_neighbors": 1}),
    "m1svm": OnLatents(estimator="SVC", options={"C": 1}),
    "m1spread": OnLatents(estimator="LabelSpreading", options=SPREADING, num_unlabeled=20_000),
    "m2": _M2,
    "m1m2": _M1M2,
    "m1m2_joint": _JOINT,
    "m1m2_skips": replace(with_recipe(_JOINT, probe_epochs=2, joint_epochs=48), skips=True),
}
NAIVE = replace(
    _M2,
    m1=None,
    hidden_dims=(500,),
    label_scale=0.1,
    recipe=M2Recipe(frozen_epochs=0, unfrozen_epochs=18, alpha_per_image=0.1),
)
PLAIN = replace(  # as the authors train M2 on latents, but on images, and with smaller batches
    NAIVE,
    classifier_dims=(500,),
    activation="SiLU",
    init_scale=1e-3,
    label_scale=None,
    labeled_batch_size=1,
    unlabeled_batch_size=99,
    recipe=replace(
        NAIVE.recipe, lr=3e-4, one_cycle=False, weight_prior=1, bf16=True, label_epochs=0, unfrozen_epochs=600
    ),
)
UNDONE = {  # M2 with one thing undone, then with all, also summed exactly
    "m2_small_embeddings": replace(_M2, label_scale=0.1),
    "m2_never_frozen": with_recipe(_M2, frozen_epochs=0, unfrozen_epochs=18),
    "m2_from_scratch": replace(_M2, m1=None, recipe=M2Recipe()),
    "m2_one_layer": replace(_M2, hidden_dims=(500,)),
    "m2_weak_labels": with_recipe(_M2, alpha_per_image=0.1),
    "m2_naive": NAIVE,
    "m2_naive_exact": with_recipe(NAIVE, topk=9),  # the tenth label stands for itself
}
MORE = {  # with one thing more
    "m2_longer": with_recipe(_M2, unfrozen_epochs=75),
    "m2_bf16": with_recipe(_M2, bf16=True),
    "m1m2_relu": replace(_M1M2, m1=replace(DEEP, activation="ReLU")),
    "m1m2_joint_longer": with_recipe(_JOINT, joint_epochs=64),
}
SOFTPLUS = replace(PLAIN, activation="softplus", transform="none", init_scale=None, label_scale=0.05)
EXACT = with_recipe(SOFTPLUS, unfrozen_epochs=596, topk=9)
LONG = {  # run only by name: M2 as the authors train it, for 30,240 updates; as in a published log, for 100,000 or,
    # with the sum exact as it is there, for 300,000, of a fifth of the images, and what that run is at 2,520 and 30,240
    "m2_plain_60": with_recipe(PLAIN, unfrozen_epochs=60),
    "m2_softplus": replace(with_recipe(SOFTPLUS, unfrozen_epochs=1000), unlabeled_batch_size=499),
    "m2_softplus_exact_5": with_recipe(EXACT, unfrozen_epochs=5),
    "m2_softplus_exact_60": with_recipe(EXACT, unfrozen_epochs=60),
    "m2_softplus_exact": EXACT,
}
_SHORT = with_recipe(DEEP, epochs=60)
TRIALS = {  # M1+M2 with one thing changed: in M1, trained for 60 epochs instead of 200, or in M2
    "m1m2_short": replace(_M1M2, m1=_SHORT),
    "m1m2_short_seed_1": replace(_M1M2, m1=replace(_SHORT, seed=1)),
    "m1m2_short_relu": replace(_M1M2, m1=replace(_SHORT, activation="ReLU")),
    "m1m2_short_no_prior": replace(_M1M2, m1=with_recipe(_SHORT, weight_prior=0)),
    "m1m2_short_no_warm_up": replace(_M1M2, m1=with_recipe(_SHORT, warm_up_epochs=0)),
    "m1m2_short_10_latents": replace(_M1M2, m1=replace(_SHORT, z_dim=10)),
    "m1m2_short_iwae": replace(_M1M2, m1=with_recipe(_SHORT, iwae_epochs=15, iwae_samples=10)),
    "m1m2": _M1M2,
    "m1m2_relu": MORE["m1m2_relu"],
    "m1m2_default_start": replace(_M1M2, init_scale=None),
    "m1m2_no_prior": with_recipe(_M1M2, weight_prior=0),
    "m1m2_silu": replace(_M1M2, activation="SiLU"),
    "m1m2_strong_labels": with_recipe(_M1M2, alpha_per_image=1),
    "m1m2_one_scale": replace(_M1M2, decoder="Gaussian"),
    "m1m2_50_labeled": replace(_M1M2, labeled_batch_size=50, unlabeled_batch_size=450),
}
EVERY = METHODS | UNDONE | MORE | LONG | TRIALS
