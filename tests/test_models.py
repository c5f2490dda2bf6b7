"""The models, M1+M2 among them: bounds, gradients, samples, against linear models that can be solved by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from vae.distributions import diagonal_normal
from vae.gaussian import GaussianDecoder
from vae.models import VAE, AutoEncoder, ConditionalVAE, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.stacked import StackedSemiSupervisedVAE

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
    """p(x|y, z) = N(Wz + offset[y], s² I); what is known of it without offsets. W's columns are orthogonal."""

    def __init__(self, scale=0.7, dtype=torch.float32):
        super().__init__()
        columns, _ = torch.linalg.qr(torch.randn(6, 2, dtype=dtype))
        self.weight, self.offsets, self.scale = columns * torch.tensor([1.5, 0.6]), torch.randn(4, 6), scale

    check = staticmethod(lambda x: None)

    def forward(self, z, y=None):
        mean = z @ self.weight.T + (0 if y is None else self.offsets[y])
        return diagonal_normal(mean, torch.full_like(mean, self.scale))

    def marginal(self):
        """p(x)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(6, dtype=self.weight.dtype)
        return MultivariateNormal(torch.zeros(6, dtype=self.weight.dtype), covariance)

    def posterior(self, x, shift=0.0, factor=1.0):
        """p(z|x), which is diagonal, or shifted and wider."""
        variance = 1 / (1 + self.weight.square().sum(0) / self.scale**2)
        mean = variance * (x @ self.weight) / self.scale**2
        return diagonal_normal(mean + shift, (factor * variance.sqrt()).expand_as(mean))

    def elbo(self, x, posterior, offset=0.0):
        """E_q(z)[log p(x|z)] − KL(q(z) ‖ p(z)), where z says nothing of `offset`."""
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
    for label in (1, np.uint8(3), np.array([0, 2, 1]), torch.tensor([2, 0, 3])):
        assert torch.equal(labels(with_labels.sample(3, label)), torch.as_tensor(label).expand(3))
    for label in (4, -1, torch.tensor([0, 4]), 0.5):
        with pytest.raises(ValueError, match="0…3"):
            with_labels.sample(2, label)


def test_reconstruction_decodes_the_posterior_mean_at_the_most_probable_label():
    x, vae, ssl = torch.rand(5, 6), m1(), m2()
    assert_close(vae.reconstruct(x), vae.decoder(vae.encoder(x).base_dist.loc).base_dist.probs)
    auto_encoder = AutoEncoder(nn.Linear(6, 2), BernoulliDecoder(2, 6, [8]))
    assert not any(model.reconstruct(x).requires_grad for model in (auto_encoder, vae, ssl))  # to be shown, not learned
    for row in x.split(1):
        label = ssl.classifier(row).probs[0].argmax()
        assert ssl.classify(row) == ssl.label_posterior(row).logits.argmax() == label
        z = ssl.encoder(row, label).base_dist.loc
        assert_close(ssl.reconstruct(row), ssl.decoder(z, label).base_dist.probs)


@pytest.mark.parametrize("dim", [1, 3])
def test_an_auto_encoder_decodes_its_code_and_samples_the_gaussian_fitted_to_codes(dim):
    matrix, x = torch.randn(dim, dim), torch.randn(200, dim) + 3
    model = AutoEncoder(lambda x: x @ matrix, lambda z: diagonal_normal(z, torch.ones_like(z)))  # decodes to z itself
    model.decoder.check = lambda x: None
    codes = x @ matrix
    assert_close(model.reconstruct(x), codes)
    model.fit_codes(x)
    assert_moments(model.sample(10_000, mean=True), codes.mean(0), torch.tensor(np.cov(codes.T)).float().view(dim, dim))


def stacked(active=(0, 2), label_prior=None):
    m1 = VAE(Encoder(6, 3, [4]), BernoulliDecoder(3, 6, [4]))
    networks = Encoder(len(active), 2, [4], 4), GaussianDecoder(2, len(active), [4], 4), Classifier(len(active), 4, [4])
    return StackedSemiSupervisedVAE(m1, SemiSupervisedVAE(*networks, label_prior), torch.tensor(active))


def test_samples_of_m1m2_go_from_y_to_z2_to_z1_to_x():
    """z1's active latents are M2's, the other one M1's."""
    model, weight = stacked([2, 0], PRIOR), torch.tensor([[1.0, 0.5], [-2.0, 0.0]])
    assert set(model.sample(50).unique().tolist()) == {0, 1}

    def decode_z2(z2, y):
        mean = 100 * y.unsqueeze(1) + z2 @ weight.T
        return diagonal_normal(mean, torch.full_like(mean, 0.5))

    model.m2.decoder.forward = decode_z2
    model.m1.decoder.forward = lambda z1: diagonal_normal(z1, torch.ones_like(z1))
    z1 = model.sample(10_000, mean=True)
    y = (z1[:, 2] / 100).round().long()
    assert_label_frequencies(y, PRIOR)
    noise = torch.cat([z1[:, [2, 0]] - 100 * y.unsqueeze(1), z1[:, 1:2]], 1)
    covariance = torch.block_diag(weight @ weight.T + 0.25 * torch.eye(2), torch.eye(1))
    assert_moments(noise, torch.zeros(3), covariance)
    given = model.sample(3, torch.tensor([3, 0, 2]), mean=True)
    assert (given[:, 2] / 100).round().tolist() == [3, 0, 2]


def test_m1m2_draws_active_latents_from_the_posterior_of_m1_anew(default_dtype):
    model, many = stacked(), torch.rand(1001, 6)  # more than a batch
    assert_close(model.features(many)[:, :2], model.m1.encoder(many).mean[:, [0, 2]].detach())
    x = many[:1]
    features, posterior = model.features(x).expand(100_000, 4), model.m1.encoder(x)
    assert not features.requires_grad
    draws = StackedSemiSupervisedVAE.draw_latents(features, torch.Generator().manual_seed(0))
    mean, stddev = posterior.mean[0, [0, 2]], posterior.stddev[0, [0, 2]]
    assert ((draws.mean(0) - mean).abs() < 5 * stddev / len(draws) ** 0.5).all()
    assert ((draws.std(0) - stddev).abs() < 5 * stddev / len(draws) ** 0.5).all()
    again, other = (StackedSemiSupervisedVAE.draw_latents(features, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(draws, again)
    assert not torch.equal(draws, other)
    default_dtype(torch.float64)
    assert StackedSemiSupervisedVAE.draw_latents(features, torch.Generator()).dtype == torch.float32


def test_m1m2_infers_the_label_at_the_mean_of_the_latents():
    model, x = stacked(), torch.rand(50, 6)
    at_mean = model.m2.classifier(model.m1.encoder(x).mean[:, [0, 2]])
    assert_close(model.train().label_posterior(x).logits, at_mean.logits)
    assert torch.equal(model.classify(x), at_mean.logits.argmax(1))
