"""Numbers that no model can use are refused at the door, with what to do; the extremes of what it can use are not."""

import re
from functools import partial
from itertools import chain

import pytest
import torch
from test_models import m1, m2, stacked
from torch import nn

from vae.conv import ConvNet
from vae.data import Batches, DataSet, SemiSupervisedBatches, binarize, hide_labels
from vae.evaluation import active_latents, elbo_terms, error_rate, log_likelihood, mean_and_standard_error
from vae.gaussian import GaussianDecoder, OptimalGaussianDecoder
from vae.models import VAE, AutoEncoder
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.recipes import M1Recipe, build_m1, train_m1
from vae.training import Recipe, fit

X, Y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.long)
GENERATOR = torch.Generator()


def doors():
    """Every function that takes images."""
    vae, ssl, on_latents = m1(), m2(), stacked()
    of_m1 = vae, vae.elbo, vae.reconstruct, lambda x: vae.importance_weighted_bound(x, 2)
    of_m2 = ssl.reconstruct, ssl.unlabeled_elbo, lambda x: ssl.labeled_elbo(x, Y[: len(x)])
    of_labels = ssl.classify, ssl.label_posterior, on_latents.classify, on_latents.label_posterior, on_latents.features
    evaluations = (lambda x: elbo_terms(vae, x), lambda x: log_likelihood(vae, x, 2), lambda x: active_latents(vae, x))
    return *of_m1, *of_m2, *of_labels, *evaluations


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (X * torch.nan, r"pixels must lie in \[0, 1\].*nan"),
        (X * 255, r"\[127.5, 127.5\]; divide 8-bit images by 255"),
        (2 * X + 1.2e-7, r"\[1.0000001192092896, 1.0000001192092896\]; .*x.clamp\(0, 1\)"),
        (X.numpy(), r"must be a tensor, as of torch.from_numpy\(x\), not ndarray"),
        (X[:0], r"x must have shape \(batch, 6\) and a row, not \(0, 6\)"),
        (X[:, :4], r"x must have shape \(batch, 6\) and a row, not \(3, 4\)"),
        (X.view(3, 2, 3), r"\(batch, 6\) and a row, not \(3, 2, 3\)"),
        (X.double(), r"x is torch.float64 and the model torch.float32.*x.float\(\)"),
        (X.bfloat16(), r"x is torch.bfloat16 and the model torch.float32.*Recipe\(bf16=True\)"),
        (torch.ones(3, 6, dtype=torch.uint8), r"x is torch.uint8 .*x.float\(\)"),
    ],
)
def test_images_that_no_model_can_use_are_refused_by_every_function(x, remedy):
    for door in doors():
        with pytest.raises(ValueError, match=remedy):
            door(x)
        door(X)


def label_doors():
    """Every function that takes labels of X: of four classes, of any number of them, and where −1 stands for none."""
    known = [m2().labeled_elbo, lambda x, y: DataSet("three", 4, x, Y, x, y, x, Y)]
    may_lack = [lambda x, y: hide_labels(y, 1, GENERATOR), lambda x, y: SemiSupervisedBatches(x, y, 1, 1, GENERATOR)]
    return known, [partial(error_rate, lambda x: Y)], may_lack


LONG = r"whole numbers in 0.*as of torch.as_tensor\(y\).long\(\), not "


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        *((Y.to(kind), f"{LONG}Tensor of {kind}") for kind in (torch.float32, torch.uint8, torch.bool)),
        (Y.numpy(), LONG + "ndarray of int64"),
        (Y.tolist(), LONG + "list"),
        *((torch.zeros(s).long(), re.escape(f"not {s}: y.squeeze(1) of a col")) for s in [(3, 1), (4, 1), (1, 3)]),
        (torch.eye(4).long()[:3], r"y.argmax\(1\) of one-hot rows"),
    ],
)
def test_labels_of_another_kind_or_shape_are_refused_by_every_function(y, complaint):
    for door in chain(*label_doors()):
        with pytest.raises(ValueError, match=complaint):
            door(X, y)


def test_labels_out_of_range_or_that_would_broadcast_by_accident_are_refused():
    """A column of as many labels as there are classes is not taken for all classes of each image."""
    known, unknown, may_lack = label_doors()
    for doors, y, complaint in (
        (known, [0, 1, 4], "in 0…3, .*not 0…4"),
        ([*known, *unknown], [-1, 0, 3], "not -1…3; only training rows may have −1, for none"),
        (may_lack, [-2, 0, 3], "not -2…3"),
        (known[:1], [[0], [1], [3], [2]], r"not \(4, 1\)"),
        (known[:1], [0], r"not \(1,\)"),
        (known[:1], 0, r"not \(\)"),
    ):
        for door in doors:
            with pytest.raises(ValueError, match=complaint):
                door(X, torch.tensor(y))
    assert known[0](X, torch.arange(4).unsqueeze(1)).shape == (4, 3)


def test_one_example_is_enough_where_no_spread_is_asked_for():
    vae, one = m1(), X[:1]
    assert len(train_m1(vae, Batches(one, 1, GENERATOR), M1Recipe(epochs=1))) == 1
    assert torch.tensor(list(elbo_terms(vae, one).values())).isfinite().all()


def auto_encoder():
    return AutoEncoder(nn.Linear(6, 2), BernoulliDecoder(2, 6, [5]))


of_real = partial(VAE, Encoder(6, 2, [5]), GaussianDecoder(2, 6, [5]))
AT_LEAST_1, OF_LABELS = r"= 0 .*must be at least 1", "num_classes needs labels, and one made without takes none"
REFUSED = {
    "real data that are infinite": (lambda: of_real().elbo(X * torch.inf), "finite"),
    "what an auto-encoder cannot compare": (lambda: auto_encoder()(X * torch.nan), "pixels must lie in"),
    "what is no intensity": (lambda: binarize(X * 2.01, GENERATOR), "pixels must lie in"),
    "labels that are no list": (lambda: m2().sample(5, torch.arange(4).unsqueeze(1)), "one for each of 5 rows"),
    "a column of guesses": (lambda: error_rate(lambda x: x[:, :1].long(), X, Y), r"one label an image.*not \(3, 1\)"),
    "labels of other classes": (lambda: error_rate(m2().classify, X, Y + 4), r"in 0…3, .*not 4…"),
    "parts that do not fit": (
        lambda: VAE(m1().encoder, build_m1(7, 2, (5,)).decoder),
        r"of x \(6,\), but .* of \(7,\)",
    ),
    "a single class": (lambda: Classifier(6, 1, [5]), "num_classes = 1 must be at least 2"),
    "channels last": (lambda: Encoder((64, 60, 3), 2, [5], network=ConvNet), r"\(64, 60, 3\).*x.permute\(0, 3, 1, 2\)"),
    "labels for some classes": (lambda: hide_labels(Y[:2], 0, GENERATOR), "= 0 must be at least one for each of 1"),
    "more labels than rows have": (lambda: hide_labels(Y, 4, GENERATOR), "at most the 3 rows that have a label"),
    "a class without a row": (lambda: hide_labels(2 * Y + 2, 3, GENERATOR), r"no row has the label \[0, 1\]"),
    "labels of no row": (lambda: SemiSupervisedBatches(X, Y - 1, 1, 1, GENERATOR), "between 1 and the 0 rows to draw"),
    "no epochs": (lambda: fit(None, m1(), Batches(X, 1, GENERATOR), Recipe(), epochs=0), AT_LEAST_1),
    "a bound of no draws": (
        lambda: train_m1(m1(), Batches(X, 1, GENERATOR), M1Recipe(epochs=1, iwae_epochs=1)),
        "iwae_samples = 0 must be at least 1",
    ),
    "a prior on the weights without a number of rows": (
        lambda: fit(None, m1(), [X], Recipe(weight_prior=1), epochs=1),
        "weight_prior needs the number of rows",
    ),
    "a number of the history's own name": (
        lambda: train_m1(m1(), Batches(X, 1, GENERATOR), M1Recipe(epochs=1), evaluate=lambda: {"loss": 1, "x": 2}),
        r"evaluate says \['loss'\], which the history has already",
    ),
    "an unknown schedule": (
        lambda: fit(None, m1(), Batches(X, 1, GENERATOR), Recipe(schedule="cosine"), epochs=1),
        'schedule = .cosine. must be "constant", "falling" or "one cycle"',
    ),
    "an auto-encoder without codes": (lambda: auto_encoder().sample(3), "by fit_codes first"),
    "the spread of one latent": (lambda: active_latents(m1(), X[:1]), "at least two"),
    "the standard error of one value": (lambda: mean_and_standard_error(torch.ones(1)), "at least two"),
    "a forgotten label": (lambda: Encoder(6, 2, [5], num_classes=3)(X), OF_LABELS),
    "an ignored label": (lambda: Encoder(6, 2, [5])(X, Y), OF_LABELS),
    "one scale of all labels": (lambda: OptimalGaussianDecoder(2, 6, [7], 3), "num_classes = 3.*SharedGaussianDecoder"),
}


@pytest.mark.parametrize(("call", "complaint"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
