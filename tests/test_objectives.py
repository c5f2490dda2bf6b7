"""The bounds, against closed forms and against a model whose log p(x) is known exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from vae.distributions import IndependentBernoulli, diagonal_normal
from vae.objectives import (
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
    m2_objective,
    unlabeled_elbo,
)


def test_elbo_is_minus_cross_entropy_minus_the_divergence_of_appendix_b():
    x, logits = torch.rand(7, 5).bernoulli(), 3 * torch.randn(5)
    mean, scale = torch.randn(7, 2), torch.rand(7, 2) + 0.2
    prior = diagonal_normal(torch.zeros(2), torch.ones(2))
    terms = x, diagonal_normal(mean, scale), IndependentBernoulli(logits), prior
    log_likelihood = -binary_cross_entropy_with_logits(logits.expand(7, 5), x, reduction="none").sum(1)
    divergence = -0.5 * (1 + torch.log(scale**2) - mean**2 - scale**2).sum(1)
    assert_close(elbo(*terms), log_likelihood - divergence)
    assert_close(elbo(*terms, kl_weight=0.3), log_likelihood - 0.3 * divergence)


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, s² I). W's columns are orthogonal, so the exact posterior is diagonal."""

    def __init__(self):
        columns, _ = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64))
        self.weight = columns * torch.tensor([1.5, 0.6])
        self.bias, self.scale = torch.randn(5, dtype=torch.float64), 0.8
        self.prior = diagonal_normal(*torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
        self.x = self.bias + torch.randn(5, dtype=torch.float64)
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(5)
        self.log_px = MultivariateNormal(self.bias, covariance).log_prob(self.x)
        variance = 1 / (1 + (self.weight**2).sum(0) / self.scale**2)
        self.mean = variance * ((self.x - self.bias) @ self.weight) / self.scale**2
        self.stddev = variance.sqrt()

    def likelihood(self, z):
        return Independent(Normal(z @ self.weight.T + self.bias, self.scale), 1)

    def bounds(self, posterior, num_samples, num):
        z = posterior.expand((num,)).sample((num_samples,))
        return importance_weighted_bound(self.x, z, posterior, self.likelihood(z), self.prior)


@pytest.mark.parametrize(("shift", "factor"), [(0, 1), (0.3, 1.5)])
def test_elbo_lies_below_log_px_by_the_divergence_from_the_exact_posterior(shift, factor):
    """And meets it there."""
    model = LinearGaussian()
    posterior = diagonal_normal(model.mean + shift, factor * model.stddev)
    likelihood = model.likelihood(posterior.sample((20_000,)))
    values = elbo(model.x, posterior, likelihood, model.prior)
    exact = MultivariateNormal(model.mean, (model.stddev**2).diag())
    dense = MultivariateNormal(posterior.mean, posterior.variance.diag())
    error = values.std() / 20_000**0.5
    assert (values.mean() + 5 * error < model.log_px) == (shift > 0)
    assert abs(values.mean() - (model.log_px - kl_divergence(dense, exact))) < 5 * error


def test_importance_weighted_bound_is_exact_at_the_exact_posterior():
    model = LinearGaussian()
    for num_samples in (1, 2, 50):
        values = model.bounds(diagonal_normal(model.mean, model.stddev), num_samples, 10)
        assert_close(values, model.log_px.expand(10))


def test_importance_weighted_bound_rises_to_log_px_from_below():
    model = LinearGaussian()
    shift, s, t = 0.6, model.stddev, 1.5 * model.stddev
    posterior = diagonal_normal(model.mean + shift, t)
    one, ten, thousand = (model.bounds(posterior, n, num) for n, num in ((1, 20_000), (10, 5_000), (1000, 500)))
    for fewer, more in ((one, ten), (ten, thousand)):
        error = (fewer.var() / len(fewer) + more.var() / len(more)) ** 0.5
        assert more.mean() - fewer.mean() > 5 * error
    # E_q[(p/q)²] for two Normals, which is 1 + the variance of the weights; the gap is half that variance over S.
    squared = (t**2 / (s * (2 * t**2 - s**2).sqrt()) * torch.exp(shift**2 / (2 * t**2 - s**2))).prod()
    gap = (squared - 1) / 2000
    assert abs(thousand.mean() - (model.log_px - gap)) < 5 * thousand.std() / 500**0.5


@pytest.mark.parametrize("num_samples", [1, 3, 40])
def test_the_doubly_reparameterized_gradient_is_unbiased_and_less_noisy(num_samples):
    """Value, and gradient in the decoder, are the same for the same draws; here each repetition has its own encoder."""
    model, values, of_encoder, of_decoder = LinearGaussian(), [], [], []
    model.bias = model.bias.clone().requires_grad_()
    for bound in (importance_weighted_bound, doubly_reparameterized_bound):
        torch.manual_seed(0)
        mean = (model.mean + 0.6).expand(20_000, 2).clone().requires_grad_()
        scale = (1.5 * model.stddev).expand(20_000, 2).clone().requires_grad_()
        posterior = diagonal_normal(mean, scale)
        z = posterior.rsample((num_samples,))
        value = bound(model.x, z, posterior, model.likelihood(z), model.prior)
        *gradients, in_bias = torch.autograd.grad(value.sum(), (mean, scale, model.bias))
        values.append(value.detach()), of_encoder.append(torch.cat(gradients, 1)), of_decoder.append(in_bias)
    assert_close(*values)
    assert_close(*of_decoder)
    (usual, usual_noise), (other, other_noise) = ((g.mean(0), g.var(0)) for g in of_encoder)
    errors = ((usual_noise + other_noise) / 20_000).sqrt()
    assert ((usual - other).abs() < 5 * errors).all()
    assert usual.abs().max() > 10 * errors.max()  # there is a gradient to be wrong about
    assert num_samples == 1 or (other_noise < usual_noise).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 8), st.floats(0, 4))
def test_no_label_posterior_beats_the_exact_one(seed, batch, num_classes, spread):
    torch.manual_seed(seed)
    bounds, probs = spread * torch.randn(batch, num_classes).double(), torch.rand(batch, num_classes).double()
    q, evidence = Categorical(probs), bounds.logsumexp(1)
    value = unlabeled_elbo((q.probs * bounds).sum(1), q)
    assert (value <= evidence + 1e-12).all()
    assert_close(evidence - value, kl_divergence(q, Categorical(logits=bounds)), rtol=1e-6, atol=1e-9)


def test_m2_objective_is_the_papers_sum_over_the_data_set_per_image_with_all_its_gradients():
    """Where 3 images with a label stand for 6, and 7 without for 70."""
    labeled, unlabeled, log_q = terms = [t.requires_grad_() for t in (torch.randn(3), torch.randn(7), -torch.rand(3))]
    total = 2 * sum(labeled.tolist()) + 10 * sum(unlabeled.tolist()) + 1.3 * sum(log_q.tolist()) / 3
    value = m2_objective(*terms, alpha=1.3, num_labeled=6, num_unlabeled=70)
    assert_close(value, torch.tensor(total / 76))
    for gradient, weight in zip(torch.autograd.grad(value, terms), (2, 10, 1.3 / 3), strict=True):
        assert_close(gradient, torch.full_like(gradient, weight / 76))
