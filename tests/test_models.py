"""The models: what they sample, infer and learn from, against linear models that can be solved by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from vae.datasets import two_gaussians
from vae.distributions import diagonal_normal
from vae.gaussian import GaussianDecoder
from vae.models import VAE, AutoEncoder, ConditionalVAE, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder

PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])


def m1():
    return VAE(Encoder(6, 2, [8]), BernoulliDecoder(2, 6, [8]))


def m2(label_prior=None):
    encoder, decoder = Encoder(6, 2, [8], 4), BernoulliDecoder(2, 6, [8], 4)
    return SemiSupervisedVAE(encoder, decoder, Classifier(6, 4, [8]), label_prior)


def conditional(label_prior=None):
    return ConditionalVAE(Encoder(6, 2, [8], 4), BernoulliDecoder(2, 6, [8], 4), 4, label_prior)


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


@pytest.mark.parametrize("make", [m2, conditional])
def test_a_label_prior_changes_the_labeled_bound_by_its_logarithm_alone(make):
    uniform, model, x, y = make().double(), make(PRIOR).double(), torch.rand(8, 6).double(), torch.arange(8) % 4
    model.load_state_dict(uniform.state_dict() | {"label_logits": model.label_logits})
    values = []
    for either in (uniform, model):
        torch.manual_seed(1)
        values.append(either.labeled_elbo(x, y))
    assert_close(values[1] - values[0], (PRIOR[y].double() * 4).log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "label_prior", [[0.5, 0.5], [0.2] * 5, [0.5, 0.5, 0, 0], [0.6, 0.6, -0.1, -0.1], [torch.nan] * 4, [PRIOR.tolist()]]
)
@pytest.mark.parametrize("make", [m2, conditional])
def test_a_label_prior_needs_a_probability_above_zero_for_every_class(make, label_prior):
    with pytest.raises(ValueError, match="label_prior must hold 4 probabilities above 0"):
        make(label_prior)


def constant(decoder, logits):
    """Make the decoder ignore z: its pixels have these logits, of shape (X,), or (K, X) for one row per label."""
    rows, network = torch.atleast_2d(torch.as_tensor(logits)), decoder.network
    with torch.no_grad():
        for parameter in (network.input.weight, network.input.bias, network.output.bias, network.output.weight):
            parameter.zero_()
        if network.label_embedding is None:
            network.output.bias.copy_(rows[0])
        else:
            nn.init.eye_(network.label_embedding.weight)
            network.output.weight[:, : len(rows)] = rows.T
    return decoder


def test_samples_are_binary_and_as_frequent_as_their_mean_says():
    logits = torch.linspace(-3, 3, 24).view(4, 6)
    vae, ssl = m1(), m2()
    constant(vae.decoder, logits[0]), constant(ssl.decoder, logits)
    for sample, row in ((vae.sample, 0), *((partial(ssl.sample, label=k), k) for k in range(4))):
        images, p = sample(10_000), logits[row].sigmoid()
        assert images.shape == (10_000, 6)
        assert set(images.unique().tolist()) == {0, 1}
        assert ((images.mean(0) - p).abs() < 5 * (p * (1 - p) / 10_000).sqrt()).all()
        assert_close(sample(3, mean=True), p.expand(3, 6))


def assert_label_frequencies(y, probs):
    """Within five standard errors."""
    frequencies = y.bincount(minlength=len(probs)) / len(y)
    assert ((frequencies - probs).abs() < 5 * (probs * (1 - probs) / len(y)).sqrt()).all()


@pytest.mark.parametrize("make", [m2, conditional])
@pytest.mark.parametrize("label_prior", [None, PRIOR])
def test_a_sample_has_the_label_it_is_given_or_one_from_the_prior(make, label_prior):
    model = make(label_prior)
    constant(model.decoder, 1e3 * torch.eye(4, 6) - 500)  # a k is an image whose pixel k is white
    images = model.sample(10_000)
    assert (images.sum(1) == 1).all()
    assert_label_frequencies(images.argmax(1), torch.full((4,), 0.25) if label_prior is None else PRIOR)
    assert model.sample(3, torch.tensor([2, 0, 3])).argmax(1).tolist() == [2, 0, 3]
    assert model.sample(2, 1, mean=True).tolist() == torch.eye(4, 6)[[1, 1]].tolist()
    for label in (4, -1, torch.tensor([0, 4]), 0.5):
        with pytest.raises(ValueError, match="0…3"):
            model.sample(2, label)


def test_samples_vary_with_a_standard_normal_latent():
    def decode(z, y=None):
        return diagonal_normal(z, torch.ones_like(z))  # to z itself

    for model in (VAE(Encoder(2, 2, [8]), decode), ConditionalVAE(Encoder(2, 2, [8], 4), decode, 4)):
        z = model.sample(10_000, mean=True)
        assert (z.mean(0).abs() < 5 / 10_000**0.5).all()
        assert ((z.T.cov() - torch.eye(2)).abs() < 5 * (1 + torch.eye(2)).sqrt() / 10_000**0.5).all()


def test_reconstruction_decodes_the_posterior_mean_at_the_inferred_label():
    x, vae, ssl = torch.rand(5, 6), m1(), m2()
    assert_close(vae.reconstruct(x), vae.decoder(vae.encoder(x).base_dist.loc).base_dist.probs)
    for row in x.split(1):
        label = ssl.classifier(row).probs[0].argmax()
        z = ssl.encoder(row, label).base_dist.loc
        assert_close(ssl.reconstruct(row), ssl.decoder(z, label).base_dist.probs)


def test_the_label_posterior_is_the_classifiers_and_classify_returns_its_most_probable_label():
    model, x = m2(), torch.eye(6)[[2, 0, 3, 1]]
    network = model.classifier.network
    with torch.no_grad():
        network.input.weight.copy_(torch.eye(8, 6)), network.output.weight.copy_(torch.eye(4, 8))
        network.input.bias.zero_(), network.output.bias.zero_()  # the logits are now the first four pixels
    assert_close(model.label_posterior(x).probs, x[:, :4].softmax(1))
    assert model.classify(x).tolist() == [2, 0, 3, 1]


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
    variance = covariance.diag()
    assert ((z.mean(0) - codes.mean(0)).abs() < 5 * (variance / 10_000).sqrt()).all()
    error = ((variance.outer(variance) + covariance**2) / 10_000).sqrt()  # of a Gaussian's sample covariance
    assert ((z.T.cov().view(dim, dim) - covariance).abs() < 5 * error).all()


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


def test_a_small_vae_learns_a_density_that_no_single_gaussian_matches():
    """On unseen data the ELBO beats the best Gaussian's log-density, and never the true one."""
    density = two_gaussians()
    data, unseen = density.sample((4000,)), density.sample((4000,))
    model = VAE(Encoder(2, 2, [32]), GaussianDecoder(2, 2, [32]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (-model.elbo(data[torch.randint(4000, (200,))]).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        elbo, true = model.elbo(unseen), density.log_prob(unseen)
    gaussian = MultivariateNormal(data.mean(0), data.T.cov()).log_prob(unseen)
    for better, worse in ((true, elbo), (elbo, gaussian)):
        gain = better - worse
        assert gain.mean() > 5 * gain.std() / 4000**0.5
