"""The networks, against their definition by concatenation, and the distributions they return."""

import pytest
import torch
from torch import nn
from torch.distributions import ContinuousBernoulli as LibrarysContinuousBernoulli
from torch.nn.functional import linear, one_hot
from torch.testing import assert_close

from vae.networks import (
    MLP,
    BernoulliDecoder,
    Classifier,
    ContinuousBernoulliDecoder,
    Encoder,
    GaussianDecoder,
    diagonal_normal,
)


def by_concatenation(mlp, x, y, num_classes):
    """What the MLP stands for: a plain network over [x, one_hot(y)]."""
    joined = nn.Linear(x.shape[1] + num_classes, mlp.first.out_features)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([mlp.first.weight, mlp.label_column.weight.T], 1))
        joined.bias.copy_(mlp.first.bias)
    hidden = joined(torch.cat([x, one_hot(y, num_classes)], 1)).clamp(min=0)
    *middle, last = [layer for layer in mlp.rest if isinstance(layer, nn.Linear)]
    for layer in middle:
        hidden = linear(hidden, layer.weight, layer.bias).clamp(min=0)
    return linear(hidden, last.weight, last.bias)


@pytest.mark.parametrize("hidden_dims", [[7], [7, 5], [7, 5, 3]])
def test_label_column_equals_a_concatenated_one_hot_label(hidden_dims):
    mlp, x, y = MLP(6, hidden_dims, 3, num_classes=4), torch.randn(9, 6), torch.randint(4, (9,))
    assert_close(mlp(x, y), by_concatenation(mlp, x, y, 4))


def test_gaussian_decoder_sees_the_label():
    decoder, z, y = GaussianDecoder(2, 6, [7], num_classes=4), torch.randn(9, 2), torch.randint(4, (9,))
    base = decoder(z, y).base_dist
    assert_close(torch.cat([base.mean, base.stddev[:, :1].log()], 1), by_concatenation(decoder.network, z, y, 4))


@pytest.mark.parametrize("make", [Encoder, BernoulliDecoder])
def test_encoder_and_decoder_see_the_label(make):
    network, x, y = make(6, 2, [7], num_classes=4), torch.randn(9, 6), torch.randint(4, (9,))
    expected = by_concatenation(network.network, x, y, 4)
    base = network(x, y).base_dist
    assert_close(torch.cat([base.mean, base.stddev.log()], 1) if make is Encoder else base.logits, expected)


def test_labels_in_a_column_pair_every_label_with_every_input():
    mlp, x = MLP(6, [7, 5], 3, num_classes=4), torch.randn(9, 6)
    expected = torch.stack([mlp(x, torch.full((9,), k)) for k in range(4)])
    assert_close(mlp(x, torch.arange(4).unsqueeze(1)), expected)


def test_label_columns_start_as_standard_normal_draws():
    columns = MLP(40, [300], 1, num_classes=10).label_column.weight
    assert columns.mean().abs() < 5 / 3000**0.5
    assert abs((columns**2).mean() - 1) < 5 * (2 / 3000) ** 0.5


def test_encoder_returns_a_diagonal_normal():
    encoder, x = Encoder(6, 2, [7], num_classes=4), torch.randn(9, 6)
    assert (encoder.x_dim, encoder.z_dim) == (6, 2)
    for y, batch in ((torch.zeros(9).long(), (9,)), (torch.arange(4).unsqueeze(1), (4, 9))):
        posterior = encoder(x, y)
        assert (posterior.batch_shape, posterior.event_shape) == (batch, (2,))
        assert (posterior.stddev > 0).all()
        assert posterior.rsample().requires_grad


def test_bernoulli_decoder_returns_probabilities_of_binary_pixels():
    for z in (torch.randn(9, 2), torch.randn(4, 9, 2)):
        likelihood = BernoulliDecoder(2, 6, [7])(z)
        assert (likelihood.batch_shape, likelihood.event_shape) == (z.shape[:-1], (6,))
        assert_close(likelihood.log_prob(torch.ones(6)).exp(), likelihood.mean.prod(-1))


def test_bernoulli_decoder_gives_grey_pixels_their_expected_log_likelihood():
    likelihood, grey = BernoulliDecoder(2, 1, [7])(torch.randn(9, 2)), torch.full((9, 1), 0.3)
    white, black = likelihood.log_prob(torch.ones(1)), likelihood.log_prob(torch.zeros(1))
    assert_close(likelihood.log_prob(grey), 0.3 * white + 0.7 * black)


def test_classifier_returns_one_distribution_over_labels_per_input():
    label_posterior = Classifier(6, 4, [7])(torch.randn(9, 6))
    assert (label_posterior.batch_shape, label_posterior.event_shape) == ((9,), ())
    assert_close(label_posterior.probs.sum(1), torch.ones(9))
    assert label_posterior.probs.shape == (9, 4)


def test_gaussian_decoder_has_the_scale_it_is_given_or_learns_one_for_each_z():
    z = torch.randn(4, 9, 2)
    fixed, learned = GaussianDecoder(2, 6, [7], scale=0.25)(z), GaussianDecoder(2, 6, [7])(z)
    for likelihood in (fixed, learned):
        assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 9), (6,))
        assert len(likelihood.mean.unique()) == 4 * 9 * 6
    assert (fixed.stddev == 0.25).all()
    assert (learned.stddev == learned.stddev[..., :1]).all()  # the same in every dimension
    assert len(learned.stddev.unique()) == 4 * 9


def test_a_label_starts_out_as_visible_as_its_columns_scale_of_one():
    """The label column's scale decides whether M2 ever uses y: five standard errors of a standard deviation."""
    column = MLP(784, [4000], 2, num_classes=10).label_column.weight
    assert abs(column.std() - 1) < 5 / (2 * column.numel()) ** 0.5


def test_labels_are_neither_forgotten_nor_ignored():
    y = torch.zeros(3).long()
    for network, inputs in ((Encoder(4, 2, [5], num_classes=3), {}), (Encoder(4, 2, [5]), {"y": y})):
        with pytest.raises(ValueError, match="num_classes"):
            network(torch.randn(3, 4), **inputs)


def test_gaussian_decoders_have_the_scales_that_they_say():
    z, num = torch.randn(4, 9, 2), 4 * 9
    distinct = {"global": 1, "example": num, "pixel": num * 6}
    for scale, count in distinct.items():
        likelihood = GaussianDecoder(2, 6, [7], scale=scale, scale_limits=(0.5, 0.7) if scale == "pixel" else None)(z)
        assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 9), (6,))
        assert likelihood.stddev.shape == (4, 9, 6)
        assert len(likelihood.stddev.unique()) == count
        likelihood.log_prob(torch.randn(6)).sum().backward()  # all of them can be learned
    assert 0.5 < likelihood.stddev.min() < likelihood.stddev.max() < 0.7
    with pytest.raises(ValueError, match="'shared' must be a number"):
        GaussianDecoder(2, 6, [7], scale="shared")


def test_the_optimal_scale_is_where_the_batchs_likelihood_is_largest():
    decoder, z, x = GaussianDecoder(2, 6, [7], scale="optimal"), torch.randn(9, 2), 3 * torch.randn(9, 6)
    mean = decoder(z).mean
    error = (x - mean).square().mean().sqrt().item()
    scales = torch.cat([torch.linspace(0.5, 2, 31) * error, torch.tensor([error])])
    values = [diagonal_normal(mean, s.expand_as(mean)).log_prob(x).sum() for s in scales]
    assert max(values) == values[-1]
    assert_close(decoder(z).log_prob(x).sum(), values[-1])


def test_the_optimal_scale_in_evaluation_is_a_density_that_no_longer_sees_its_value():
    decoder, z = GaussianDecoder(2, 6, [7], scale="optimal"), torch.randn(9, 2)
    for _ in range(2000):
        decoder(z).log_prob(decoder(z).mean + 0.3 * torch.randn(9, 6))
    kept = decoder.mean_square.item()
    assert abs(kept - 0.09) < 0.005
    likelihood, x = decoder.eval()(z), torch.randn(9, 6)
    assert_close(likelihood.log_prob(x), diagonal_normal(decoder(z).mean, likelihood.stddev).log_prob(x))
    assert_close(likelihood.variance, torch.full((9, 6), kept))
    assert decoder.mean_square == kept
    assert decoder.state_dict()["mean_square"] == kept  # saved and restored with the parameters


def test_continuous_bernoulli_decoder_is_the_bernoulli_decoder_and_its_normaliser():
    decoder, z, x = ContinuousBernoulliDecoder(2, 6, [7]), torch.randn(4, 9, 2), torch.rand(6)
    likelihood = decoder(z)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 9), (6,))
    expected = LibrarysContinuousBernoulli(logits=decoder.network(z)).log_prob(x).sum(-1)
    assert_close(likelihood.log_prob(x), expected)
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        decoder.check(torch.tensor([[2.0]]))


@pytest.mark.parametrize("scale", [1.0, "global", "optimal"])
def test_scale_limits_are_refused_where_no_scale_is_a_function_of_z(scale):
    with pytest.raises(ValueError, match="no use for scale_limits"):
        GaussianDecoder(2, 3, [4], scale=scale, scale_limits=[0.1, 1])
