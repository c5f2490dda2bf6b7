"""The bounds, against closed forms and models whose log p(x) is known; the sum over labels, against brute force."""

from functools import partial

import pytest
import torch
from test_models import LinearDecoder
from test_networks import DECODERS
from torch.distributions import Bernoulli, Categorical, Independent
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from vae.conv import ConvNet, DeconvNet
from vae.distributions import diagonal_normal
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.networks import MLP
from vae.objectives import (
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
    m2_objective,
)
from vae.recipes import build_m2

PRIOR = diagonal_normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))


def test_elbo_is_minus_cross_entropy_minus_the_divergence_of_appendix_b():
    x, logits = torch.rand(7, 5).double().bernoulli(), 3 * torch.randn(5).double()
    mean, scale = torch.randn(7, 2).double(), torch.rand(7, 2).double() + 0.2
    terms = x, diagonal_normal(mean, scale), Independent(Bernoulli(logits=logits, validate_args=False), 1), PRIOR
    log_likelihood = -binary_cross_entropy_with_logits(logits.expand(7, 5), x, reduction="none").sum(1)
    divergence = -0.5 * (1 + torch.log(scale**2) - mean**2 - scale**2).sum(1)
    assert_close(elbo(*terms), log_likelihood - divergence)
    assert_close(elbo(*terms, kl_weight=0.3), log_likelihood - 0.3 * divergence)


def linear_gaussian():
    """A model, one x, and log p(x)."""
    model = LinearDecoder(dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64)
    return model, x, model.marginal().log_prob(x)


def weighted_bounds(model, x, posterior, num_samples, num):
    z = posterior.expand((num,)).sample((num_samples,))
    return importance_weighted_bound(x, z, posterior, model(z), PRIOR)


def test_importance_weighted_bound_rises_to_log_px_from_below_and_is_exact_at_the_exact_posterior():
    model, x, log_px = linear_gaussian()
    exact = model.posterior(x)
    for num_samples in (1, 2, 50):
        assert_close(weighted_bounds(model, x, exact, num_samples, 10), log_px.expand(10))
    posterior = model.posterior(x, shift=0.6, factor=1.5)
    shift, s, t = 0.6, exact.stddev, posterior.stddev
    sizes = ((1, 20_000), (10, 5_000), (1000, 500))
    one, ten, thousand = (weighted_bounds(model, x, posterior, *size) for size in sizes)
    for fewer, more in ((one, ten), (ten, thousand)):
        error = (fewer.var() / len(fewer) + more.var() / len(more)) ** 0.5
        assert more.mean() - fewer.mean() > 5 * error
    # E_q[(p/q)²] for two Normals, which is 1 + the variance of the weights; the gap is half that variance over S.
    squared = (t**2 / (s * (2 * t**2 - s**2).sqrt()) * torch.exp(shift**2 / (2 * t**2 - s**2))).prod()
    gap = (squared - 1) / 2000
    assert abs(thousand.mean() - (log_px - gap)) < 5 * thousand.std() / 500**0.5


@pytest.mark.parametrize("num_samples", [1, 3, 40])
def test_the_doubly_reparameterized_gradient_is_unbiased_and_less_noisy(num_samples):
    """Value, and gradient in the decoder, are the same for the same draws; here each repetition has its own encoder."""
    (model, x, _), values, of_encoder, of_decoder = linear_gaussian(), [], [], []
    exact = model.posterior(x)
    model.weight.requires_grad_()
    for bound in (importance_weighted_bound, doubly_reparameterized_bound):
        torch.manual_seed(0)
        mean = (exact.mean + 0.6).expand(20_000, 2).clone().requires_grad_()
        scale = (1.5 * exact.stddev).expand(20_000, 2).clone().requires_grad_()
        posterior = diagonal_normal(mean, scale)
        z = posterior.rsample((num_samples,))
        value = bound(x, z, posterior, model(z), PRIOR)
        *gradients, in_weight = torch.autograd.grad(value.sum(), (mean, scale, model.weight))
        values.append(value.detach()), of_encoder.append(torch.cat(gradients, 1)), of_decoder.append(in_weight)
    assert_close(*values)
    assert_close(*of_decoder)
    (usual, usual_noise), (other, other_noise) = ((g.mean(0), g.var(0)) for g in of_encoder)
    errors = ((usual_noise + other_noise) / 20_000).sqrt()
    assert ((usual - other).abs() < 5 * errors).all()
    assert usual.abs().max() > 10 * errors.max()  # there is a gradient to be wrong about
    assert num_samples == 1 or (other_noise < usual_noise).all()


def test_m2_objective_is_the_papers_sum_over_the_data_set_per_image_with_all_its_gradients():
    """Where 3 images with a label stand for 6, and 7 without for 70."""
    labeled, unlabeled, log_q = terms = [t.requires_grad_() for t in (torch.randn(3), torch.randn(7), -torch.rand(3))]
    total = 2 * sum(labeled.tolist()) + 10 * sum(unlabeled.tolist()) + 1.3 * sum(log_q.tolist()) / 3
    value = m2_objective(*terms, alpha=1.3, num_labeled=6, num_unlabeled=70)
    assert_close(value, torch.tensor(total / 76))
    for gradient, weight in zip(torch.autograd.grad(value, terms), (2, 10, 1.3 / 3), strict=True):
        assert_close(gradient, torch.full_like(gradient, weight / 76))


def brute_force(model, x, noise):
    """−U(x) image by image and label by label: each image is alone, with one label."""
    values = []
    for row, of_row in zip(x.split(1), noise.split(1), strict=True):
        q = model.classifier(row).probs[0]
        bounds = torch.cat([model.elbo_given_noise(row, torch.tensor([k]), of_row) for k in range(len(q))])
        values.append((q * (bounds - q.log())).sum())
    return torch.stack(values)


@pytest.mark.parametrize(
    ("x_shape", "networks", "num_classes"),
    [((6,), (MLP, MLP), 7), ((2, 1, 3), (MLP, MLP), 2), ((2, 5, 4), (ConvNet, DeconvNet), 3)],
    ids=["vector", "image", "convolutions"],
)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_unlabeled_elbo_and_its_gradients_equal_brute_force(decoder, x_shape, networks, num_classes):
    """In training, for every decoder and every sum: no image's bound depends on the others in its batch."""
    of_x, of_z = (network if network is MLP else partial(network, channels=(4, 3)) for network in networks)
    options = {"decoder": decoder, "network": of_x, "decoder_network": of_z, "classifier_dims": (7,)}
    m2 = build_m2(x_shape, num_classes, 2, [8], **options).double().train()
    x, noise, weight = (torch.rand(4, *shape, dtype=torch.float64) for shape in (x_shape, (2,), ()))

    def with_gradients(values):
        return values, *torch.autograd.grad((weight * values).sum(), list(m2.parameters()))

    expected = with_gradients(brute_force(m2, x, noise))
    for method in (marginalize, marginalize_loop, partial(marginalize_topk, k=num_classes - 1)):
        assert_close(with_gradients(m2.unlabeled_elbo(x, method, noise)), expected)


def value_and_gradients(method, logits, weights):
    """Of Σ_y q(y) weights_y², one row at a time: the sum, and its gradients in the logits and in the weights."""
    leaves = [t.clone().requires_grad_() for t in (logits, weights)]
    value = method(lambda y: (leaves[1].gather(1, y.T) ** 2).T, Categorical(logits=leaves[0]))
    return value.detach().unsqueeze(1), *torch.autograd.grad(value.sum(), leaves)


@pytest.mark.parametrize("k", [1, 2])
def test_topk_is_unbiased_in_value_and_gradient(k):
    """200,000 draws average to the exact sum, within 5 standard errors."""
    logits, weights = torch.randn(2, 1, 5, dtype=torch.float64) * 2
    exact = value_and_gradients(marginalize, logits, weights)
    draws = value_and_gradients(partial(marginalize_topk, k=k), logits.expand(200_000, 5), weights.expand(200_000, 5))
    for reference, values in zip(exact, draws, strict=True):
        standard_error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - reference[0]).abs() <= 5 * standard_error + 1e-9).all()
        assert values.std(0).max() > 1e-3  # it is an estimate: the test would not pass by mistake of the exact sum


def test_topk_sums_the_most_probable_labels():
    """So it is exact for bounds that are 0 at all other labels, whichever of those is drawn."""
    q = Categorical(logits=torch.randn(1000, 6))
    bounds = torch.zeros(1000, 6).scatter(1, q.logits.topk(2).indices, torch.randn(1000, 2))
    value = marginalize_topk(lambda y: bounds.gather(1, y.T).T, q, 2)
    assert_close(value, (q.probs * bounds).sum(1))


@pytest.mark.parametrize("method", [marginalize, marginalize_loop, partial(marginalize_topk, k=2)])
def test_a_sure_classifier_makes_no_denormal_gradients(method):
    """They would slow a CPU down tenfold; the value is that of the most probable label all the same."""
    logits, scale = torch.tensor([[0.0, -90.0, -95.0, -100.0]]).expand(6, 4), torch.ones(6)
    columns = torch.randn(4, requires_grad=True)
    value = method(lambda y: columns[y] * scale, Categorical(logits=logits))
    (gradient,) = torch.autograd.grad(value.sum(), columns)
    assert_close(value, columns[0].expand(6))
    assert gradient[0] == 6
    assert gradient[gradient != 0].abs().min() > 1e-30
