"""Numbers that no model can use are refused at the door, with what to do; the extremes of what it can use are not."""

import pytest
import torch
from test_models import m1, m2, skipping, stacked
from torch import nn

from vae.data import Batches, binarize, dequantize
from vae.evaluation import active_latents, elbo_terms, log_likelihood, mean_and_standard_error
from vae.gaussian import GaussianDecoder
from vae.models import VAE, AutoEncoder
from vae.networks import BernoulliDecoder, Encoder
from vae.training import fit

X, Y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.long)
GENERATOR = torch.Generator()


def models():
    return m1(), m2(), stacked(), skipping()


def doors():
    """Every function that takes images."""
    vae, *others = models()
    of_vae = vae, vae.elbo, vae.reconstruct, lambda x: vae.importance_weighted_bound(x, 2)
    of_m2 = (others[0].reconstruct, *(model.features for model in others[1:]))
    for model in others:
        of_m2 += model.unlabeled_elbo, model.classify, model.label_posterior
        of_m2 += (lambda x, model=model: model.labeled_elbo(x, Y[: len(x)]),)
    evaluations = (lambda x: elbo_terms(vae, x), lambda x: log_likelihood(vae, x, 2), lambda x: active_latents(vae, x))
    return *of_vae, *of_m2, *evaluations


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (X * torch.nan, r"pixels must lie in \[0, 1\].*nan"),
        (X * torch.inf, r"pixels must lie in \[0, 1\].*inf"),
        (X * 255, r"\[127.5, 127.5\]; divide 8-bit images by 255"),
        (-X, r"\[-0.5, -0.5\]"),
        (X[:0], r"x must have shape \(batch, 6\) and a row, not \(0, 6\)"),
        (X[:, :4], r"x must have shape \(batch, 6\) and a row, not \(3, 4\)"),
        (X[0], r"\(batch, 6\) and a row, not \(6,\)"),
        (X.view(3, 2, 3), r"\(batch, 6\) and a row, not \(3, 2, 3\)"),
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_real_data_must_be_finite_and_an_auto_encoder_wants_pixels(value):
    with pytest.raises(ValueError, match="finite"):
        VAE(Encoder(6, 2, [5]), GaussianDecoder(2, 6, [5])).elbo(X * value)
    with pytest.raises(ValueError, match="pixels must lie in"):
        AutoEncoder(nn.Linear(6, 2), BernoulliDecoder(2, 6, [5]))(X * value)


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        (torch.tensor([0, 1, 4]), "in 0…3"),
        (torch.tensor([-1, 0, 3]), "in 0…3"),
        (Y.float(), r"whole numbers, as of y.long\(\)"),
        *((torch.zeros(shape).long(), r"\(3,\) or \(4, 1\)") for shape in [(1,), (3, 1), (1, 3), (4, 3), ()]),
    ],
)
def test_labels_out_of_range_or_that_would_broadcast_by_accident_are_refused(y, complaint):
    _, *labeled = models()
    for model in labeled:
        with pytest.raises(ValueError, match=complaint):
            model.labeled_elbo(X, y)


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
