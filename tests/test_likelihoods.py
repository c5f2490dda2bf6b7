"""The continuous Bernoulli against numerical integration and the library's, where that is precise."""

import pytest
import torch
from torch.distributions import ContinuousBernoulli as LibrarysContinuousBernoulli
from torch.testing import assert_close

from vae.likelihoods import ContinuousBernoulli

LOGITS = torch.tensor([-40.0, -16.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-6, 0.05, 0.0999, 0.1001, 2.0, 30.0, 200.0])


def integrate(logits, function=lambda x: 1):
    """∫ function(x) p(x) dx over [0, 1], in double precision on a grid that is fine near both ends."""
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    x, width = torch.sigmoid(t), torch.sigmoid(t) * torch.sigmoid(-t)
    density = ContinuousBernoulli(logits.double().unsqueeze(1)).log_prob(x).exp()
    return torch.trapezoid(function(x) * density * width, t, dim=1)


def test_it_is_a_density_with_that_mean():
    assert_close(integrate(LOGITS), torch.ones(len(LOGITS), dtype=torch.float64), rtol=0, atol=2e-3)
    mean = integrate(LOGITS, lambda x: x)
    assert_close(ContinuousBernoulli(LOGITS).mean, mean.float(), rtol=0, atol=2e-3)


def test_it_agrees_with_the_library_at_moderate_logits():
    logits, x = torch.linspace(-8, 8, 101), torch.rand(101)
    ours, theirs = ContinuousBernoulli(logits), LibrarysContinuousBernoulli(logits=logits)
    assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-4, atol=1e-4)
    assert_close(ours.mean, theirs.mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logit", [-200.0, -0.1, 0.0, 0.1, 200.0])
def test_log_prob_and_its_gradient_are_finite(logit):
    logits = torch.tensor(logit, requires_grad=True)
    value = ContinuousBernoulli(logits).log_prob(torch.tensor(0.3))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite()


def test_the_gradient_in_the_logit_is_x_less_the_mean():
    logits = LOGITS.double().requires_grad_()
    density = ContinuousBernoulli(logits)
    density.log_prob(torch.tensor(0.25, dtype=torch.float64)).sum().backward()
    assert_close(logits.grad, 0.25 - density.mean.detach(), rtol=0, atol=1e-4)


def test_samples_have_the_mean_and_stay_in_the_unit_interval():
    density = ContinuousBernoulli(LOGITS)
    draws = density.sample((100_000,))
    assert draws.shape == (100_000, len(LOGITS))
    assert 0 <= draws.min() <= draws.max() <= 1
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - density.mean).abs() < 5 * standard_error + 1e-6).all()
