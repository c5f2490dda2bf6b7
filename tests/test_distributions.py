"""The distributions against the library's, where that is precise, and against numerical integration."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent
from torch.testing import assert_close

from vae.distributions import ContinuousBernoulli, IndependentBernoulli

LOGITS = torch.tensor([-200.0, -16.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-6, 0.05, 0.0999, 0.1001, 2.0, 30.0, 200.0])


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


@pytest.mark.parametrize(
    ("shape", "event_dims"),
    [((3, 784), 1), ((4, 3, 784), 1), ((3, 1), 1), ((2, 3, 113), 1), ((5, 1, 20), 1), ((4, 3, 2, 7, 5), 3)],
)
def test_independent_bernoullis_agree_with_the_plain_ones_in_value_and_gradient(shape, event_dims):
    logits = 8 * torch.randn(shape, dtype=torch.float64)
    x = torch.rand(3, *shape[-event_dims:], dtype=torch.float64)
    weight = torch.randn(*shape[: -event_dims - 1], 3, dtype=torch.float64)
    outcomes = []
    for make in (IndependentBernoulli, lambda a, dims: Independent(Bernoulli(logits=a, validate_args=False), dims)):
        leaf = logits.clone().requires_grad_()
        value = make(leaf, event_dims).log_prob(x)
        outcomes.append((value.detach(), *torch.autograd.grad((weight * value).sum(), leaf)))
    assert outcomes[0][0].shape == weight.shape
    assert_close(*outcomes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
def test_independent_bernoullis_in_single_precision_at_extreme_logits(logit):
    logits, x = torch.full((2, 784), logit, requires_grad=True), torch.tensor([[0.0], [1.0]]).expand(2, 784)
    value = IndependentBernoulli(logits).log_prob(x)
    exact = Independent(Bernoulli(logits=logits.detach().double()), 1).log_prob(x.double())
    each = torch.finfo(torch.float32).eps  # σ(|l|) is rounded to this
    assert_close(value.detach().double(), exact, rtol=1e-6, atol=784 * each)
    value.sum().backward()
    assert_close(logits.grad, x - torch.sigmoid(logits.detach()), rtol=0, atol=0)


def test_independent_bernoullis_refuse_gradients_that_they_do_not_have():
    likelihood = IndependentBernoulli(torch.zeros(2, 5, requires_grad=True))
    with pytest.raises(ValueError, match="no gradient in the pixels"):
        likelihood.log_prob(torch.rand(2, 5, requires_grad=True))
    [gradient] = torch.autograd.grad(likelihood.log_prob(torch.rand(2, 5)).sum(), likelihood.base_dist.logits)
    assert not gradient.requires_grad
