"""The networks, against their definition by concatenation, and the distributions that they return."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import linear, one_hot
from torch.testing import assert_close

from vae.distributions import diagonal_normal
from vae.gaussian import DiagonalGaussianDecoder, GaussianDecoder, OptimalGaussianDecoder, SharedGaussianDecoder
from vae.networks import MLP, BernoulliDecoder, ContinuousBernoulliDecoder, Encoder

DECODERS = {
    "Bernoulli": BernoulliDecoder,
    "continuous Bernoulli": ContinuousBernoulliDecoder,
    "Gaussian": GaussianDecoder,
    "diagonal": DiagonalGaussianDecoder,
    "diagonal with limits": partial(DiagonalGaussianDecoder, scale_limits=(0.5, 0.7)),
    "shared": SharedGaussianDecoder,
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


@pytest.mark.parametrize("hidden_dims", [[7], [7, 5], [7, 5, 3]])
def test_a_label_embedding_equals_a_concatenated_one_hot_label(hidden_dims):
    mlp, x, y = MLP(6, hidden_dims, (3, 2), num_classes=4), torch.randn(9, 6), torch.randint(4, (9,))
    expected = by_concatenation(mlp, x, y, 4)
    assert_close(mlp(x, y), expected.view(9, 3, 2))


def test_encoder_and_decoders_say_what_their_network_does_of_input_and_label():
    x, y = torch.randn(9, 6), torch.randint(4, (9,))
    for make, outputs in (
        (Encoder, lambda base: torch.cat([base.mean, base.stddev.log()], 1)),
        (BernoulliDecoder, lambda base: base.logits),
        (ContinuousBernoulliDecoder, lambda base: base.logits),
        (GaussianDecoder, lambda base: torch.cat([base.mean, base.stddev[:, :1].log()], 1)),
    ):
        model = make(6, 2, [7], num_classes=4)
        assert_close(outputs(model(x, y).base_dist), by_concatenation(model.network, x, y, 4))


def test_a_label_starts_out_as_visible_as_an_embedding_of_scale_one():
    """That decides whether M2 ever uses y: mean and standard deviation within five standard errors."""
    embeddings = MLP(784, [4000], 2, num_classes=10).label_embedding.weight
    assert abs(embeddings.mean()) < 5 / embeddings.numel() ** 0.5
    assert abs(embeddings.std() - 1) < 5 / (2 * embeddings.numel()) ** 0.5


def test_labels_are_neither_forgotten_nor_ignored():
    y = torch.zeros(3).long()
    for network, inputs in ((Encoder(4, 2, [5], num_classes=3), {}), (Encoder(4, 2, [5]), {"y": y})):
        with pytest.raises(ValueError, match="num_classes"):
            network(torch.randn(3, 4), **inputs)


@pytest.mark.parametrize("x_shape", [(6,), (2, 1, 3)])
def test_gaussian_decoders_have_the_scales_that_they_say_and_can_learn_them(x_shape):
    z, num = torch.randn(4, 9, 2), 4 * 9
    distinct = {"Gaussian": num, "diagonal": num * 6, "diagonal with limits": num * 6, "shared": 1, "fixed": 1}
    for name, count in distinct.items():
        decoder = DECODERS[name](2, x_shape, [7])
        likelihood, x = decoder(z), torch.randn(x_shape)
        assert (likelihood.batch_shape, likelihood.event_shape) == ((4, 9), x_shape)
        assert len(likelihood.mean.unique()) == num * 6
        scales = likelihood.stddev.expand(4, 9, *x_shape).flatten(2)
        assert len(scales.unique()) == count
        assert count != num or (scales == scales[..., :1]).all()  # the same in every dimension
        assert name != "fixed" or (scales == 0.25).all()
        assert name != "diagonal with limits" or 0.5 < scales.min() < scales.max() < 0.7
        expected = Normal(likelihood.mean, likelihood.stddev).log_prob(x).flatten(2).sum(2)
        assert_close(likelihood.log_prob(x), expected)
        expected.sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in decoder.parameters())


@pytest.mark.parametrize("x_shape", [(6,), (2, 1, 3)])
def test_the_optimal_scale_in_evaluation_is_a_density_that_no_longer_sees_its_value(x_shape):
    decoder, z = OptimalGaussianDecoder(2, x_shape, [7]), torch.randn(9, 2)
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


def test_a_scale_in_closed_form_is_refused_where_labels_are_summed_over():
    with pytest.raises(ValueError, match=r"num_classes = 3.*SharedGaussianDecoder"):
        OptimalGaussianDecoder(2, 6, [7], num_classes=3)
