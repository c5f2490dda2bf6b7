"""Estimates of log p(x) and of the bound's terms, against models whose log p(x) is known or can be found otherwise."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from test_models import LinearDecoder, m1, m2
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from vae import evaluation
from vae.data import NO_LABEL, Batches, SemiSupervisedBatches, binarize
from vae.evaluation import (
    active_latents,
    calibration_error,
    elbo_terms,
    evaluate_mean,
    log_likelihood,
    mean_and_standard_error,
)
from vae.models import VAE
from vae.networks import BernoulliDecoder, Encoder
from vae.recipes import M1Recipe, M2Recipe, train_m1, train_m2


class NearPosterior(nn.Module):
    """An encoder that is near the exact posterior of a LinearDecoder."""

    def __init__(self, decoder):
        super().__init__()
        self.x_shape, self.z_dim, self.forward = (6,), 2, partial(decoder.posterior, shift=0.05, factor=1.3)


def linear_vae():
    """A VAE whose encoder is near the exact posterior, and the exact p(x)."""
    decoder = LinearDecoder(scale=0.4)
    return VAE(NearPosterior(decoder), decoder), decoder.marginal()


def test_log_likelihood_is_that_of_a_linear_gaussian_model():
    """Within five standard errors, image by image, though the encoder is not exact and chunks are unequal."""
    vae, marginal = linear_vae()
    x = marginal.sample((8,))
    estimates = torch.stack([log_likelihood(vae, x, 5000, chunk_size=1900) for _ in range(20)])  # (20, 8)
    standard_error = estimates.std(0) / 20**0.5
    assert standard_error.max() < 0.02
    assert ((estimates.mean(0) - marginal.log_prob(x)).abs() < 5 * standard_error + 1e-3).all()


def test_standard_error_and_error_rate_by_hand():
    mean, error = mean_and_standard_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert (mean, error) == pytest.approx((3, (14 / 3 / 4) ** 0.5))
    images, labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])
    assert evaluation.error_rate(lambda x: x.long(), images, labels) == 12.5


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_models_in_double_precision_are_trained_and_evaluated(default, default_dtype):
    default_dtype(default)
    x, y = torch.rand(20, 6, dtype=torch.float64), torch.arange(20) % 4
    vae, ssl, generator = m1().double(), m2(np.array([0.1, 0.2, 0.3, 0.4])).double(), torch.Generator()
    assert m2([0.1, 0.2, 0.3, 0.4]).label_logits.dtype == default
    train_m1(vae, Batches(x, 10, generator, binarize), M1Recipe(epochs=1))
    batches = SemiSupervisedBatches(x, y.where(torch.arange(20) < 12, NO_LABEL), 6, 4, generator, binarize)
    train_m2(ssl, batches, M2Recipe(label_epochs=1, frozen_epochs=1, unfrozen_epochs=1))
    bounds = vae.elbo(x), ssl.unlabeled_elbo(x), ssl.labeled_elbo(x, y), log_likelihood(vae, x, 3), ssl.sample(3)
    assert {bound.dtype for bound in bounds} == {torch.float64}
    assert 0 <= evaluation.error_rate(ssl.classify, x, y) <= 100
    assert all(math.isfinite(value) for value in elbo_terms(vae, x).values())


def test_evaluate_mean_weighs_all_rows_alike_in_batches_without_gradient():
    x, y, sizes = torch.randn(10, 2, requires_grad=True), torch.randn(10), []

    def value(x, y):
        sizes.append(len(x))
        assert not (x * y.unsqueeze(1)).requires_grad
        return x.sum(1) * y

    assert evaluate_mean(value, x, y, batch_size=3) == pytest.approx((x.sum(1) * y).mean().item(), rel=1e-5, abs=1e-6)
    assert sizes == [3, 3, 3, 1]


def test_active_latents_are_those_whose_mean_follows_the_data_by_more_than_a_tenth():
    encoder, x = Encoder((2, 3), 3, [4]), torch.rand(1000, 2, 3).bernoulli()
    vae, weight = VAE(encoder, BernoulliDecoder(3, (2, 3), [4])), encoder.network.output.weight.data
    weight.fill_(1)
    weight[:3] *= torch.tensor([[0.0], [0.09], [0.11]]) / encoder(x).mean.std()
    assert active_latents(vae, x).tolist() == [2]


def test_elbo_terms_are_those_of_the_aggregate_posterior():
    """And add up: q(z) as the mean of its parts' densities, the bound from the same draws."""
    vae, marginal = linear_vae()
    x = marginal.sample((300,))
    torch.manual_seed(1)
    terms = elbo_terms(vae, x)
    torch.manual_seed(1)
    posterior = vae.encoder(x)
    z = posterior.sample()
    parts = Normal(posterior.mean, posterior.stddev).log_prob(z.unsqueeze(1)).sum(2).exp()  # (300, 300)
    aggregate = parts.mean(1).log()
    assert_close(terms["kl_to_prior"], (aggregate - vae.prior.log_prob(z)).mean().item(), rtol=0, atol=1e-4)
    assert_close(terms["log_likelihood"], vae.decoder(z).log_prob(x).mean().item(), rtol=0, atol=1e-4)
    torch.manual_seed(1)
    with torch.no_grad():
        assert_close(terms["elbo"], vae.elbo(x).mean().item(), rtol=0, atol=1e-3)
    sum_of_terms = terms["log_likelihood"] - terms["mutual_information"] - terms["kl_to_prior"]
    assert terms["elbo"] == pytest.approx(sum_of_terms, abs=1e-4)
    assert 0 < terms["mutual_information"] < math.log(300)
    assert -0.1 < terms["kl_to_prior"] < 0.5


def test_calibration_error_is_the_gap_between_sure_and_right():
    sure = torch.tensor([[0.95, 0.05]] * 4 + [[0.35, 0.65]] * 4)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0])  # three of four are right, then two of four
    assert calibration_error(sure, labels) == pytest.approx((20 + 15) / 2)
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
