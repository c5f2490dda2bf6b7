"""Numbers that no model can use are refused at the door, with what to do; the extremes of what it can use are not."""

import pytest
import torch
from torch import nn

from vae.data import Batches, SemiSupervisedBatches, binarize, check_labels, dequantize, labeled_split
from vae.evaluation import elbo_terms, log_likelihood, mean_and_standard_error
from vae.models import VAE, SemiSupervisedVAE, SkipSemiSupervisedVAE, StackedSemiSupervisedVAE, active_latents
from vae.networks import BernoulliDecoder, Classifier, Encoder, GaussianDecoder
from vae.training import fit

X, Y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.long)
GENERATOR = torch.Generator()


def models():
    vae = VAE(Encoder(6, 2, [5]), BernoulliDecoder(2, 6, [5]))
    m2 = SemiSupervisedVAE(Encoder(6, 2, [5], 3), BernoulliDecoder(2, 6, [5], 3), Classifier(6, 3, [5]))
    of_latents = SemiSupervisedVAE(Encoder(2, 2, [5], 3), GaussianDecoder(2, 2, [5], 3), Classifier(2, 3, [5]))
    both = torch.tensor([0, 1])
    with_label = VAE(Encoder(6, 2, [5]), BernoulliDecoder(2, 6, [5], 3))
    skips = SkipSemiSupervisedVAE(with_label, of_latents, both, Classifier(6, 3, [5]))
    return vae, m2, StackedSemiSupervisedVAE(vae, of_latents, both), skips


def doors():
    """Every function that takes images."""
    vae, m2, stacked, skips = models()
    of_vae = vae, vae.elbo, vae.reconstruct, lambda x: vae.importance_weighted_bound(x, 2)
    of_m2 = m2.unlabeled_elbo, m2.classify, m2.reconstruct, lambda x: m2.labeled_elbo(x, Y[: len(x)])
    of_both = stacked.unlabeled_elbo, stacked.classify, stacked.features
    of_skips = skips.unlabeled_elbo, skips.classify, skips.features, lambda x: skips.labeled_elbo(x, Y[: len(x)])
    evaluations = (lambda x: elbo_terms(vae, x), lambda x: log_likelihood(vae, x, 2), lambda x: active_latents(vae, x))
    return *of_vae, *of_m2, *of_both, *of_skips, *evaluations


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (X * torch.nan, r"pixels must lie in \[0, 1\].*nan"),
        (X * torch.inf, r"pixels must lie in \[0, 1\].*inf"),
        (X * 255, r"\[127.5, 127.5\]; divide 8-bit images by 255"),
        (-X, r"\[-0.5, -0.5\]"),
        (X[:0], r"x must have shape \(batch, 6\) and a row, not \(0, 6\)"),
        (X[:, :4], r"x must have shape \(batch, 6\) and a row, not \(3, 4\); flatten"),
        (X.double(), r"x is torch.float64 and the model torch.float32.*x.float\(\)"),
        (X.bfloat16(), r"x is torch.bfloat16 and the model torch.float32.*fit\(bf16=True\)"),
        (torch.ones(3, 6, dtype=torch.uint8), r"x is torch.uint8 .*x.float\(\)"),
    ],
)
def test_images_that_no_model_can_use_are_refused_by_every_function(x, remedy):
    for door in doors():
        with pytest.raises(ValueError, match=remedy):
            door(x)
        door(X)


def test_a_model_in_bfloat16_is_refused_for_its_densities_would_be_too_coarse():
    with pytest.raises(ValueError, match=r"fit\(bf16=True\)"):
        models()[0].bfloat16().elbo(X.bfloat16())


@pytest.mark.parametrize("draw", [binarize, dequantize])
@pytest.mark.parametrize("x", [X * torch.nan, X * 255, X * 2.01, -X])
def test_what_is_no_intensity_is_not_drawn_from(draw, x):
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        draw(x, GENERATOR)
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        next(iter(Batches(x, 2, GENERATOR, draw)))


def test_labels_are_whole_numbers():
    for wrong in (Y.float(), Y[:0]):
        with pytest.raises(ValueError, match=r"whole numbers.*labels.long\(\)"):
            check_labels(wrong, 3)
        with pytest.raises(ValueError, match="whole numbers"):
            labeled_split(wrong, 3, GENERATOR, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        models()[1].labeled_elbo(X, Y.float())


def test_a_class_without_images_is_named():
    with pytest.raises(ValueError, match=r"no image has the label \[1, 3\]"):
        labeled_split(torch.tensor([0, 2, 2, 0]), 4, GENERATOR, 4)


def test_one_label_per_class_and_none_left_to_be_unlabelled():
    labels = torch.tensor([2, 0, 1])
    labeled, unlabeled = labeled_split(labels, 3, GENERATOR, 3)
    assert labels[labeled].tolist() == [0, 1, 2]
    assert len(unlabeled) == 0
    with pytest.raises(ValueError, match="num_unlabeled = 2, but there are no rows to draw from"):
        SemiSupervisedBatches(X, labels, X[unlabeled], 1, 2, GENERATOR)


def test_counts_below_one_are_refused():
    vae, *_ = models()
    for refused in (
        lambda: vae.importance_weighted_bound(X, 0),
        lambda: log_likelihood(vae, X, 0),
        lambda: log_likelihood(vae, X, 5, chunk_size=0),
        lambda: fit(None, vae, Batches(X, 1, GENERATOR), epochs=0, lr=0.1),
    ):
        with pytest.raises(ValueError, match=r"= 0 .*must be at least 1"):
            refused()


def test_one_example_is_enough_where_no_spread_is_asked_for():
    vae, *_ = models()
    history = fit(lambda x: -vae.elbo(x).mean(), vae, Batches(X[:1], 1, GENERATOR), epochs=1, lr=1e-3)
    assert len(history) == 1
    assert torch.tensor(list(elbo_terms(vae, X[:1]).values())).isfinite().all()
    for refused in (lambda: mean_and_standard_error(torch.ones(1)), lambda: active_latents(vae, X[:1])):
        with pytest.raises(ValueError, match="at least two"):
            refused()


@pytest.mark.parametrize("logit", [1e4, -1e4])
@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_a_decoder_that_is_sure_has_a_finite_bound_and_gradient(logit, pixel):
    vae, *_ = models()
    nn.init.constant_(vae.decoder.network.rest[-1].bias, logit)
    value = vae.elbo(torch.full((2, 6), pixel)).sum()
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())
