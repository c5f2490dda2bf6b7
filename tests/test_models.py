"""The models: what they sample, infer and learn from, against linear models that can be solved by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.testing import assert_close

from vae.distributions import diagonal_normal
from vae.models import VAE, AutoEncoder, ConditionalVAE, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder

PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])


def m1():
    return VAE(Encoder(6, 2, [8]), BernoulliDecoder(2, 6, [8]))


def m2(label_prior=None):
    encoder, decoder = Encoder(6, 2, [8], 4), BernoulliDecoder(2, 6, [8], 4)
    return SemiSupervisedVAE(encoder, decoder, Classifier(6, 4, [8]), label_prior)


class FixedEncoder(nn.Module):
    """q(z|x, y) = N(mean + shift[y], scale² I), with a mean and a scale for each row of x: a gradient for each draw."""

    def __init__(self, num):
        super().__init__()
        self.x_shape, self.z_dim, self.shift = (6,), 2, torch.randn(4, 2)
        self.mean, self.scale = nn.Parameter(torch.randn(2).repeat(num, 1)), nn.Parameter(torch.full((num, 2), 0.3))

    def forward(self, x, y=None):
        mean = self.mean[: len(x)] + (0 if y is None else self.shift[y])
        return diagonal_normal(mean, self.scale[: len(x)].expand(mean.shape))


class LinearDecoder(nn.Module):
    """p(x|y, z) = N(Wz + offset[y], s² I), whose expected log-likelihood under a Normal q(z) is known."""

    def __init__(self, scale=0.7):
        super().__init__()
        self.weight, self.offsets, self.scale = torch.randn(6, 2), torch.randn(4, 6), scale

    check = staticmethod(lambda x: None)

    def forward(self, z, y=None):
        mean = z @ self.weight.T + (0 if y is None else self.offsets[y])
        return diagonal_normal(mean, torch.full_like(mean, self.scale))

    def elbo(self, x, posterior, offset=0.0):
        residual = x - posterior.mean @ self.weight.T - offset
        spread = posterior.variance @ (self.weight**2).sum(0)
        log_likelihood = Normal(0, self.scale).log_prob(residual).sum(1) - spread / (2 * self.scale**2)
        divergence = 0.5 * (posterior.mean**2 + posterior.variance - 1 - posterior.variance.log()).sum(1)
        return log_likelihood - divergence


def assert_unbiased(values, exact, encoder):
    """The draws, and their gradients, must average to the exact value and gradient, within five standard errors."""
    gradients = torch.autograd.grad(values.sum(), [encoder.mean, encoder.scale])
    exact_gradients = torch.autograd.grad(exact, [encoder.mean, encoder.scale], retain_graph=True)
    for draws, expected in ((values, exact), *zip(gradients, [g.sum(0) for g in exact_gradients], strict=True)):
        assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / len(draws) ** 0.5).all()


def test_m1_bounds_and_their_gradients_are_unbiased():
    """Of one sample, the importance-weighted bound has the mean of the ELBO."""
    x, model = torch.randn(1, 6), VAE(FixedEncoder(20_000), LinearDecoder())
    exact = model.decoder.elbo(x, model.encoder(x))[0]
    for bound in (model.elbo, partial(model.importance_weighted_bound, num_samples=1)):
        assert_unbiased(bound(x.expand(20_000, 6)), exact, model.encoder)


def test_m2_bounds_and_their_gradients_are_unbiased():
    x, classifier = torch.randn(1, 6), Classifier(6, 4, [8])
    model = SemiSupervisedVAE(FixedEncoder(20_000), LinearDecoder(), classifier, PRIOR)
    many, posterior = x.expand(20_000, 6), model.encoder(x, torch.arange(4))
    exact = model.decoder.elbo(x, posterior, model.decoder.offsets) + PRIOR.log()  # (4,)
    for label in range(4):
        values = model.labeled_elbo(many, torch.full((20_000,), label))
        assert_unbiased(values, exact[label], model.encoder)
    q = model.classifier(x).probs[0]
    assert_unbiased(model.unlabeled_elbo(many), (q * (exact - q.log())).sum(), model.encoder)


@pytest.mark.parametrize(
    "label_prior", [[0.5, 0.5], [0.2] * 5, [0.5, 0.5, 0, 0], [0.6, 0.6, -0.1, -0.1], [torch.nan] * 4, [PRIOR.tolist()]]
)
def test_a_label_prior_needs_a_probability_above_zero_for_every_class(label_prior):
    with pytest.raises(ValueError, match="label_prior must hold 4 probabilities above 0"):
        m2(label_prior)


def assert_label_frequencies(y, probs):
    """Within five standard errors."""
    frequencies = y.bincount(minlength=len(probs)) / len(y)
    assert ((frequencies - probs).abs() < 5 * (probs * (1 - probs) / len(y)).sqrt()).all()


def assert_moments(draws, mean, covariance):
    """Those of a Gaussian, within five standard errors."""
    variance, num = covariance.diag(), len(draws)
    error = ((variance.outer(variance) + covariance**2) / num).sqrt()  # of the sample covariance
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / num).sqrt()).all()
    assert ((draws.T.cov().view_as(covariance) - covariance).abs() < 5 * error).all()


@pytest.mark.parametrize("label_prior", [None, PRIOR])
def test_a_sample_is_decoded_from_the_priors_draw_and_the_label_that_is_given_or_drawn(label_prior):
    """With p(x|y, z) = N(z + 100 y, I / 2), where x says which y it is of; its mean has less spread."""

    def decode(z, y=None):
        mean = z if y is None else z + 100 * y.unsqueeze(1)
        return diagonal_normal(mean, torch.full_like(mean, 0.5**0.5))

    def labels(x):
        return (x[:, 0] / 100).round().long()

    vae, with_labels = VAE(Encoder(2, 2, [8]), decode), ConditionalVAE(Encoder(2, 2, [8], 4), decode, 4, label_prior)
    for mean, variance in ((True, 1), (False, 1.5)):
        x = with_labels.sample(10_000, mean=mean)
        assert_label_frequencies(labels(x), torch.full((4,), 0.25) if label_prior is None else PRIOR)
        for draws in (x - 100 * labels(x).unsqueeze(1), vae.sample(10_000, mean=mean)):
            assert_moments(draws, torch.zeros(2), variance * torch.eye(2))
    for label in (1, torch.tensor([2, 0, 3])):
        assert torch.equal(labels(with_labels.sample(3, label)), torch.as_tensor(label).expand(3))
    for label in (4, -1, torch.tensor([0, 4]), 0.5):
        with pytest.raises(ValueError, match="0…3"):
            with_labels.sample(2, label)


def test_reconstruction_decodes_the_posterior_mean_at_the_most_probable_label():
    x, vae, ssl = torch.rand(5, 6), m1(), m2()
    assert_close(vae.reconstruct(x), vae.decoder(vae.encoder(x).base_dist.loc).base_dist.probs)
    for row in x.split(1):
        label = ssl.classifier(row).probs[0].argmax()
        assert ssl.classify(row) == ssl.label_posterior(row).logits.argmax() == label
        z = ssl.encoder(row, label).base_dist.loc
        assert_close(ssl.reconstruct(row), ssl.decoder(z, label).base_dist.probs)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_an_auto_encoder_samples_the_gaussian_fitted_to_its_codes(dim):
    matrix = torch.randn(dim, dim)
    model = AutoEncoder(lambda x: x @ matrix, lambda z: diagonal_normal(z, torch.ones_like(z)))  # decodes to z itself
    with pytest.raises(ValueError, match="by fit_codes first"):
        model.sample(3)
    x = torch.randn(200, dim) + 3
    model.fit_codes(x)
    z, codes = model.sample(10_000, mean=True), x @ matrix
    covariance = torch.tensor(np.cov(codes.T.numpy())).float().view(dim, dim)
    assert_moments(z, codes.mean(0), covariance)


def test_an_auto_encoder_decodes_its_code_and_samples_binary_pixels():
    model, x = AutoEncoder(nn.Linear(6, 2), BernoulliDecoder(2, 6, [8])), torch.rand(5, 6)
    probs = model.decoder.network(x @ model.encoder.weight.T + model.encoder.bias).sigmoid()
    assert_close((model(x).mean, model.reconstruct(x)), (probs, probs))
    model.fit_codes(x)
    assert set(model.sample(50).unique().tolist()) == {0, 1}


@pytest.mark.parametrize("make", [m1, m2])
def test_the_prior_follows_the_model(make):
    assert make().double().prior.sample().dtype == torch.float64
    assert make().to("meta").prior.mean.device.type == "meta"
