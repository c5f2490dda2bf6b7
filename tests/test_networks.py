"""Networks, plain and convolutional, against their definition; distributions, against the library and integration."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import linear, one_hot
from torch.testing import assert_close

from vae.conv import ConvNet, DeconvNet
from vae.distributions import ContinuousBernoulli, diagonal_normal
from vae.gaussian import (
    ColumnGaussianDecoder,
    DiagonalGaussianDecoder,
    GaussianDecoder,
    OptimalGaussianDecoder,
    SharedGaussianDecoder,
)
from vae.models import VAE
from vae.networks import BernoulliDecoder, ContinuousBernoulliDecoder, Encoder
from vae.recipes import build_m2

seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 6)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
double = {"dtype": torch.float64}
DECODERS = {
    "Bernoulli": BernoulliDecoder,
    "continuous Bernoulli": ContinuousBernoulliDecoder,
    "Gaussian": GaussianDecoder,
    "diagonal": DiagonalGaussianDecoder,
    "diagonal with limits": partial(DiagonalGaussianDecoder, scale_limits=(0.5, 0.7)),
    "shared": partial(SharedGaussianDecoder, initial_scale=0.4),
    "column": ColumnGaussianDecoder,
    "fixed": partial(SharedGaussianDecoder, fixed_scale=0.25),
}  # all that may take labels


def by_concatenation(mlp, x, y, num_classes):
    """What the MLP stands for: a plain network over [x, one_hot(y)]."""
    joined = nn.Linear(x.shape[1] + num_classes, mlp.input.out_features)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([mlp.input.weight, mlp.label_embedding.weight.T], 1))
        joined.bias.copy_(mlp.input.bias)
    hidden = joined(torch.cat([x, one_hot(y, num_classes)], 1)).clamp(min=0)
    for layer in mlp.hidden[1::2]:  # between ReLUs
        hidden = linear(hidden, layer.weight, layer.bias).clamp(min=0)
    return linear(hidden, mlp.output.weight, mlp.output.bias)


def test_encoder_and_decoders_say_what_a_network_of_input_and_one_hot_label_does():
    x, y = torch.randn(9, 6), torch.randint(4, (9,))
    for make, outputs in (
        (Encoder, lambda base: torch.cat([base.mean, base.stddev.log()], 1)),
        (BernoulliDecoder, lambda base: base.logits),
        (ContinuousBernoulliDecoder, lambda base: base.logits),
        (GaussianDecoder, lambda base: torch.cat([base.mean, base.stddev[:, :1].log()], 1)),
    ):
        model = make(6, 2, [7, 5, 3], num_classes=4)
        assert_close(outputs(model(x, y).base_dist), by_concatenation(model.network, x, y, 4))


@pytest.mark.parametrize("x_shape", [(6,), (2, 1, 3)])
def test_gaussian_decoders_have_the_scales_that_they_say_and_can_learn_them(x_shape):
    z, num = torch.randn(4, 9, 2), 4 * 9
    starts = {"shared": 0.4, "fixed": 0.25, "column": 1.1}
    distinct = {"Gaussian": num, "diagonal": num * 6, "diagonal with limits": num * 6} | dict.fromkeys(starts, 1)
    for name, count in distinct.items():
        decoder = DECODERS[name](2, x_shape, [7])
        likelihood, x = decoder(z), torch.randn(x_shape)
        assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 9), x_shape)
        assert len(likelihood.mean.unique()) == num * 6
        scales = likelihood.stddev.expand(4, 9, *x_shape).flatten(2)
        assert len(scales.unique()) == count
        assert count != num or (scales == scales[..., :1]).all()  # the same in every dimension
        assert count > 1 or scales.mean().item() == pytest.approx(starts[name])
        assert name != "diagonal with limits" or 0.5 < scales.min() < scales.max() < 0.7
        expected = Normal(likelihood.mean, likelihood.stddev).log_prob(x).flatten(2).sum(2)
        assert_close(likelihood.log_prob(x), expected)
        expected.sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


def test_each_column_has_a_scale_of_its_own_above_a_floor():
    decoder = DECODERS["column"](2, (3,), [7])
    decoder.log_scale.data.copy_(torch.tensor([0.0, 0.9, 1.9]).log())
    assert_close(decoder(torch.randn(9, 2)).stddev, torch.tensor([0.1, 1, 2]).expand(9, 3))


def test_the_optimal_scale_in_evaluation_is_a_density_that_no_longer_sees_its_value():
    x_shape, z = (2, 1, 3), torch.randn(9, 2)
    decoder = OptimalGaussianDecoder(2, x_shape, [7])
    for _ in range(2000):
        decoder(z).log_prob(decoder(z).mean + 0.3 * torch.randn(9, *x_shape))
    kept = decoder.mean_square.item()
    assert abs(kept - 0.09) < 0.005
    likelihood, x = decoder.eval()(z), torch.randn(9, *x_shape)
    expected = diagonal_normal(decoder(z).mean, likelihood.stddev, len(x_shape)).log_prob(x)
    assert_close(likelihood.log_prob(x), expected)
    assert_close(likelihood.variance, torch.full((9, *x_shape), kept))
    assert decoder.mean_square == kept
    assert decoder.state_dict()["mean_square"] == kept  # saved and restored with the parameters


decoders = st.sampled_from(list(DECODERS.values()))


@given(seeds, sizes, shapes, decoders, st.sampled_from([torch.float32, torch.float64]))
def test_bounds_are_one_finite_number_per_image_even_of_black_ones(seed, batch, x_shape, make, dtype):
    torch.manual_seed(seed)
    of_any, of_one_scale = make(2, x_shape, [5]), OptimalGaussianDecoder(2, x_shape, [5])
    vae, optimal = (VAE(Encoder(x_shape, 2, [5]), decoder) for decoder in (of_any, of_one_scale))
    m2 = build_m2(x_shape, 3, 2, [5], decoder=make, label_scale=None)
    models = nn.ModuleList([vae, optimal, m2]).to(dtype)
    for x in (torch.zeros(batch, *x_shape, dtype=dtype), torch.rand(batch, *x_shape, dtype=dtype)):
        y = torch.zeros(batch, dtype=torch.long)
        of_m1 = vae.elbo(x), vae.importance_weighted_bound(x, 3), optimal.elbo(x)
        bounds = *of_m1, m2.labeled_elbo(x, y), m2.unlabeled_elbo(x)
        for bound in bounds:
            assert (bound.shape, bound.dtype) == ((batch,), dtype)
            assert bound.isfinite().all()
        total = sum(bound.mean() for bound in bounds)
        gradients = torch.autograd.grad(total, list(models.parameters()), allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        assert vae.reconstruct(x).shape == m2.reconstruct(x).shape == x.shape
        assert m2.classify(x).shape == (batch,)


conv, deconv = partial(ConvNet, channels=(6, 8)), partial(DeconvNet, channels=(8, 6))


def m2(x_shape, num_classes):
    return build_m2(x_shape, num_classes, 2, [8], network=conv, decoder_network=deconv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x_shape", [(3, 32, 32), (1, 29, 27), (3, 8, 5), (2, 1, 6)])
def test_images_of_any_size_come_back_in_shape_and_learn_from_all_parameters(x_shape, dtype):
    model, x = m2(x_shape, 4).to(dtype), torch.rand(5, *x_shape, dtype=dtype)
    assert model.reconstruct(x).shape == model.sample(5).shape == x.shape
    bound = model.unlabeled_elbo(x)
    assert (bound.shape, bound.dtype) == ((5,), dtype)
    bound.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_decoder_of_narrow_images_may_say_a_scale_for_each_pixel():
    z = torch.randn(5, 2)
    likelihood = DiagonalGaussianDecoder(2, (3, 8, 4), [5], network=deconv)(z)
    assert likelihood.mean.shape == likelihood.stddev.shape == (5, 3, 8, 4)


def test_convolutions_run_once_per_image_whatever_the_number_of_labels():
    model, seen = m2((3, 8, 8), 100), []
    model.encoder.network.convolutions[0].register_forward_hook(lambda layer, x, output: seen.append(len(output)))
    model.unlabeled_elbo(torch.rand(5, 3, 8, 8))
    assert seen == [5]


LOGITS = torch.tensor([-200.0, -16.0, -3.0, -0.11, -0.09, -1e-4, 0.0, 1e-6, 0.05, 0.0999, 0.1001, 2.0, 30.0, 200.0])


def integrate(logits, function=lambda x: 1):
    """∫ function(x) p(x) dx over [0, 1], in double precision on a grid that is fine near both ends."""
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    x, width = torch.sigmoid(t), torch.sigmoid(t) * torch.sigmoid(-t)
    density = ContinuousBernoulli(logits.double().unsqueeze(1)).log_prob(x).exp()
    return torch.trapezoid(function(x) * density * width, t, dim=1)


def test_the_continuous_bernoulli_is_a_density_of_that_mean_which_its_gradient_and_its_samples_have():
    density, mean = ContinuousBernoulli(LOGITS), integrate(LOGITS, lambda x: x)
    assert_close(integrate(LOGITS), torch.ones(len(LOGITS), dtype=torch.float64), rtol=0, atol=2e-3)
    assert_close(density.mean, mean.float(), rtol=0, atol=2e-3)
    logits = LOGITS.double().requires_grad_()
    exact = ContinuousBernoulli(logits)
    exact.log_prob(torch.tensor(0.25, dtype=torch.float64)).sum().backward()
    assert_close(logits.grad, 0.25 - exact.mean.detach(), rtol=0, atol=1e-4)
    draws = density.sample((100_000,))
    assert draws.shape == (100_000, len(LOGITS))
    assert 0 <= draws.min() <= draws.max() <= 1
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - density.mean).abs() < 5 * standard_error + 1e-6).all()


@given(seeds, sizes, shapes, st.floats(0.01, 100))
def test_no_common_scale_beats_the_optimal_one(seed, batch, x_shape, factor):
    torch.manual_seed(seed)
    decoder, z = OptimalGaussianDecoder(2, x_shape, [3]).double(), torch.randn(batch, 2, **double)
    mean, x = decoder(z).mean, 3 * torch.randn(batch, *x_shape, **double)
    best, root_mean_square = decoder(z).log_prob(x).sum(), (x - mean).square().mean().sqrt()
    assert_close(best, Normal(mean, root_mean_square).log_prob(x).sum())
    assert best >= Normal(mean, root_mean_square * factor).log_prob(x).sum() - 1e-9
