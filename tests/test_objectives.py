"""The bounds, against closed forms and against a model whose log p(x) is known exactly."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.testing import assert_close

from vae.distributions import diagonal_normal
from vae.networks import BernoulliDecoder
from vae.objectives import (
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
    labeled_elbo,
    m2_objective,
    unlabeled_elbo,
)


def standard_normal(dim):
    return diagonal_normal(torch.zeros(dim), torch.ones(dim))


def bernoulli(logits):
    """The likelihood of a decoder whose last layer has only a bias, `logits`."""
    decoder = BernoulliDecoder(z_dim=1, x_shape=len(logits), hidden_dims=[1])
    with torch.no_grad():
        decoder.network.output.weight.zero_()
        decoder.network.output.bias.copy_(torch.as_tensor(logits))
    return decoder(torch.zeros(1))


def test_elbo_is_minus_cross_entropy_minus_the_divergence_of_appendix_b():
    x, logits = torch.rand(7, 5).bernoulli(), 3 * torch.randn(5)
    mean, scale = torch.randn(7, 2), torch.rand(7, 2) + 0.2
    terms = x, diagonal_normal(mean, scale), bernoulli(logits), standard_normal(2)
    log_likelihood = -binary_cross_entropy_with_logits(logits.expand(7, 5), x, reduction="none").sum(1)
    divergence = -0.5 * (1 + torch.log(scale**2) - mean**2 - scale**2).sum(1)
    assert_close(elbo(*terms), log_likelihood - divergence)
    assert_close(elbo(*terms, kl_weight=0.3), log_likelihood - 0.3 * divergence)


def test_divergence_and_its_gradient_are_finite_far_from_the_prior():
    mean = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    log_scale = torch.tensor([0.0, -20.0, 20.0], requires_grad=True)
    x, likelihood = torch.ones(1), bernoulli([0.0])
    value = elbo(x, diagonal_normal(mean, log_scale.exp()), likelihood, standard_normal(3))
    value.backward()
    divergence = (mean**2 + torch.exp(2 * log_scale) - 2 * log_scale - 1).sum() / 2
    assert_close(value, -math.log(2) - divergence)
    assert_close(mean.grad, -mean)  # dKL/dm = m
    assert_close(log_scale.grad, 1 - torch.exp(2 * log_scale))  # dKL/d(log s) = s² − 1


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

    def elbos(self, posterior, num):
        z = posterior.sample((num,))
        return elbo(self.x, posterior, self.likelihood(z), self.prior)

    def bounds(self, posterior, num_samples, num):
        z = posterior.expand((num,)).sample((num_samples,))
        return importance_weighted_bound(self.x, z, posterior, self.likelihood(z), self.prior)


@pytest.mark.parametrize(("shift", "factor"), [(0, 1), (0.3, 1.5)])
def test_elbo_lies_below_log_px_by_the_divergence_from_the_exact_posterior(shift, factor):
    """And meets it there."""
    model = LinearGaussian()
    posterior = diagonal_normal(model.mean + shift, factor * model.stddev)
    values = model.elbos(posterior, 20_000)
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


def test_labeled_elbo_adds_log_py():
    x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([2, 0])
    posterior, label_prior = diagonal_normal(torch.ones(2, 1), torch.ones(2, 1)), Categorical(torch.tensor([1, 3, 4]))
    value = labeled_elbo(x, y, posterior, bernoulli([0.0, math.log(3)]), standard_normal(1), label_prior)
    by_hand = [  # log p(x|z) + log p(y) − KL, pixel by pixel
        math.log(1 / 2) + math.log(1 / 4) + math.log(4 / 8) - 1 / 2,
        math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 8) - 1 / 2,
    ]
    assert_close(value, torch.tensor(by_hand))


def unlabeled(probs, elbos):
    return unlabeled_elbo((probs * elbos).sum(-1), Categorical(probs))


def test_unlabeled_elbo_of_a_certain_label_is_that_labels_elbo():
    elbos = -100 * torch.rand(6)
    assert_close(unlabeled(one_hot(torch.arange(6)).float(), elbos), elbos)


def test_unlabeled_elbo_passes_the_entropys_gradient():
    elbos, logits = torch.randn(2, 5, dtype=torch.float64)
    logits.requires_grad_()
    q = logits.softmax(0)
    unlabeled(q, elbos).backward()
    surplus = elbos - q.log()
    assert_close(logits.grad, (q * (surplus - (q * surplus).sum())).detach())  # zero where q = softmax(elbos)


def of_data_set(labeled, unlabeled, log_q):
    return m2_objective(labeled, unlabeled, log_q, alpha=1.3, num_labeled=3, num_unlabeled=7)


def test_m2_objective_is_the_papers_sum_over_the_data_set_per_image_with_all_its_gradients():
    labeled, unlabeled, log_q = terms = [t.requires_grad_() for t in (torch.randn(3), torch.randn(7), -torch.rand(3))]
    total = sum(labeled.tolist()) + sum(unlabeled.tolist()) + 1.3 * sum(log_q.tolist()) / 3
    value = of_data_set(*terms)
    assert_close(value, torch.tensor(total / 10))
    for gradient, weight in zip(torch.autograd.grad(value, terms), (1, 1, 1.3 / 3), strict=True):
        assert_close(gradient, torch.full_like(gradient, weight / 10))


def test_m2_objective_does_not_depend_on_batch_sizes():
    labeled, unlabeled, log_q = torch.randn(3), torch.randn(7), -torch.rand(3)
    value = of_data_set(labeled, unlabeled, log_q)
    assert_close(of_data_set(labeled.repeat(2), unlabeled, log_q.repeat(2)), value)
    assert_close(of_data_set(labeled, unlabeled.repeat(5), log_q), value)
