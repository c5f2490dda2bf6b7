"""The models: what they sample, refuse and learn from, against linear models that can be solved by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from vae.data import two_gaussians
from vae.marginalization import marginalize, marginalize_loop
from vae.models import (
    VAE,
    AutoEncoder,
    SemiSupervisedVAE,
    SkipSemiSupervisedVAE,
    StackedSemiSupervisedVAE,
    active_latents,
)
from vae.networks import BernoulliDecoder, Classifier, Encoder, GaussianDecoder, diagonal_normal


def m1():
    return VAE(Encoder(6, 2, [8]), BernoulliDecoder(2, 6, [8]))


def m2():
    return SemiSupervisedVAE(Encoder(6, 2, [8], 4), BernoulliDecoder(2, 6, [8], 4), Classifier(6, 4, [8]))


def test_unlabelled_images_alone_train_encoder_decoder_and_classifier():
    model = m2()
    model.unlabeled_elbo(torch.rand(16, 6).bernoulli()).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


class FixedEncoder(nn.Module):
    """q(z|x, y) = N(mean + shift[y], scale² I), with a mean and a scale for each row of x: a gradient for each draw."""

    def __init__(self, num):
        super().__init__()
        self.x_dim, self.z_dim, self.shift = 6, 2, torch.randn(4, 2)
        self.mean, self.scale = nn.Parameter(torch.randn(2).repeat(num, 1)), nn.Parameter(torch.full((num, 2), 0.3))

    def forward(self, x, y=None):
        mean = self.mean[: len(x)] + (0 if y is None else self.shift[y])
        return diagonal_normal(mean, self.scale[: len(x)].expand(mean.shape))


class LinearDecoder(nn.Module):
    """p(x|y, z) = N(Wz + offset[y], s² I), whose expected log-likelihood under a Normal q(z) is known."""

    def __init__(self):
        super().__init__()
        self.weight, self.offsets, self.scale = torch.randn(6, 2), torch.randn(4, 6), 0.7

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


def test_m1_elbo_and_its_gradient_are_unbiased():
    x, model = torch.randn(1, 6), VAE(FixedEncoder(20_000), LinearDecoder())
    exact = model.decoder.elbo(x, model.encoder(x))[0]
    assert_unbiased(model.elbo(x.expand(20_000, 6)), exact, model.encoder)


def test_m2_bounds_and_their_gradients_are_unbiased():
    x, model = torch.randn(1, 6), SemiSupervisedVAE(FixedEncoder(20_000), LinearDecoder(), Classifier(6, 4, [8]))
    many, posterior = x.expand(20_000, 6), model.encoder(x, torch.arange(4))
    exact = model.decoder.elbo(x, posterior, model.decoder.offsets) - torch.tensor(4.0).log()  # (4,)
    for label in range(4):
        values = model.labeled_elbo(many, torch.full((20_000,), label))
        assert_unbiased(values, exact[label], model.encoder)
    q = model.classifier(x).probs[0]
    assert_unbiased(model.unlabeled_elbo(many), (q * (exact - q.log())).sum(), model.encoder)


def test_m1_importance_weighted_bound_of_one_sample_averages_to_the_elbo():
    model, x = m1(), torch.rand(1, 6).bernoulli().expand(20_000, 6)
    with torch.no_grad():
        bound, elbo = model.importance_weighted_bound(x, 1), model.elbo(x)
    assert bound.shape == elbo.shape == (20_000,)
    assert abs(bound.mean() - elbo.mean()) < 5 * ((bound.var() + elbo.var()) / 20_000) ** 0.5


def constant(decoder, logits):
    """Make the decoder ignore z: its pixels have these logits, of shape (X,), or (K, X) for one row per label."""
    rows = torch.atleast_2d(torch.as_tensor(logits))
    with torch.no_grad():
        first, last = decoder.network.first, decoder.network.rest[-1]
        first.weight.zero_(), first.bias.zero_(), last.bias.zero_(), last.weight.zero_()
        if decoder.network.label_column is None:
            last.bias.copy_(rows[0])
        else:
            nn.init.eye_(decoder.network.label_column.weight)
            last.weight[:, : len(rows)] = rows.T
    return decoder


def test_samples_are_binary_and_as_frequent_as_their_mean_says():
    logits = torch.linspace(-3, 3, 24).view(4, 6)
    vae = VAE(Encoder(6, 2, [8]), constant(BernoulliDecoder(2, 6, [8]), logits[0]))
    ssl = SemiSupervisedVAE(Encoder(6, 2, [8], 4), constant(BernoulliDecoder(2, 6, [8], 4), logits), m2().classifier)
    for sample, row in ((vae.sample, 0), *((partial(ssl.sample, k), k) for k in range(4))):
        images, p = sample(10_000), logits[row].sigmoid()
        assert images.shape == (10_000, 6)
        assert set(images.unique().tolist()) == {0, 1}
        assert ((images.mean(0) - p).abs() < 5 * (p * (1 - p) / 10_000).sqrt()).all()
        assert_close(sample(3, mean=True), p.expand(3, 6))


def test_samples_vary_with_a_standard_normal_latent():
    model = VAE(Encoder(2, 2, [8]), lambda z: diagonal_normal(z, torch.ones_like(z)))  # decodes to z itself
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


def test_classify_returns_the_most_probable_label():
    model = m2()
    first, last = model.classifier.network.first, model.classifier.network.rest[-1]
    with torch.no_grad():
        first.weight.copy_(torch.eye(8, 6)), last.weight.copy_(torch.eye(4, 8))
        first.bias.zero_(), last.bias.zero_()  # the logits are now the first four pixels
    assert model.classify(torch.eye(6)[[2, 0, 3, 1]]).tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_auto_encoder_samples_the_gaussian_fitted_to_its_codes(dim):
    model = AutoEncoder(None, lambda z: diagonal_normal(z, torch.ones_like(z)))  # decodes to z itself
    codes = torch.randn(200, dim) @ torch.randn(dim, dim) + 3
    z = model.sample(10_000, codes, mean=True)
    covariance = torch.tensor(np.cov(codes.T.numpy())).float().view(dim, dim)
    variance = covariance.diag()
    assert ((z.mean(0) - codes.mean(0)).abs() < 5 * (variance / 10_000).sqrt()).all()
    error = ((variance.outer(variance) + covariance**2) / 10_000).sqrt()  # of a Gaussian's sample covariance
    assert ((z.T.cov().view(dim, dim) - covariance).abs() < 5 * error).all()


def test_auto_encoder_decodes_its_code():
    model = AutoEncoder(nn.Linear(6, 2), BernoulliDecoder(2, 6, [8]))
    x = torch.rand(5, 6)
    probs = model.decoder.network(x @ model.encoder.weight.T + model.encoder.bias).sigmoid()
    assert_close(model(x).mean, probs)
    assert_close(model.reconstruct(x), probs)


good = torch.full((3, 6), 0.5)


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (good * 255, r"\[0, 1\].*127\.5"),
        (good - 1, r"\[0, 1\].*-0\.5"),
        (good.log() * float("nan"), r"\[0, 1\].*nan"),
        (good[:, :5], r"\(batch, 6\).*\(3, 5\)"),
        (good[0], r"\(batch, 6\).*\(6,\)"),
        (good.view(3, 2, 3), r"\(batch, 6\).*\(3, 2, 3\)"),
    ],
)
def test_images_that_are_no_images_are_refused(x, complaint):
    vae, ssl = m1(), m2()
    y = torch.zeros(len(x)).long()
    for refuse in (vae, vae.elbo, lambda x: vae.importance_weighted_bound(x, 2)):
        with pytest.raises(ValueError, match=complaint):
            refuse(x)
    for refuse in (ssl.unlabeled_elbo, lambda x: ssl.labeled_elbo(x, y)):
        with pytest.raises(ValueError, match=complaint):
            refuse(x)


@pytest.mark.parametrize(("labels", "span"), [([0, 1, 4], "0…4"), ([-1, 0, 3], "-1…3")])
def test_labels_out_of_range_are_refused(labels, span):
    with pytest.raises(ValueError, match=f"0…3.*{span}"):
        m2().labeled_elbo(good, torch.tensor(labels))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (1, 3), (4, 3), ()])
def test_labels_of_a_shape_that_would_broadcast_by_accident_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(3,\) or \(4, 1\)"):
        m2().labeled_elbo(good, torch.zeros(shape).long())


def test_bounds_are_computed_in_float64_when_asked():
    model, x = m2().double(), good.double()
    torch.manual_seed(0)
    values = model.labeled_elbo(x, torch.tensor([0, 1, 2])), model.unlabeled_elbo(x), m1().double().elbo(x)
    assert all(v.dtype == torch.float64 and v.isfinite().all() for v in values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_real_data_must_be_finite(value):
    model = VAE(Encoder(2, 2, [8]), GaussianDecoder(2, 2, [8]))
    with pytest.raises(ValueError, match="finite"):
        model.elbo(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("model", [m1, m2])
def test_the_prior_follows_the_model(model):
    assert model().to(torch.float64).prior.sample().dtype == torch.float64
    assert model().to("meta").prior.mean.device.type == "meta"


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


def stacked_on(encoder, active):
    return StackedSemiSupervisedVAE(
        VAE(encoder, BernoulliDecoder(3, 6, [4])),
        SemiSupervisedVAE(Encoder(2, 2, [4], 5), GaussianDecoder(2, 2, [4], 5), Classifier(2, 5, [4])),
        torch.tensor(active),
    )


def test_m1m2_sees_the_active_latents_of_m1():
    encoder, x = Encoder(6, 3, [4]), torch.rand(9, 6)
    stacked, posterior = stacked_on(encoder, [0, 2]), encoder(x)
    expected = torch.cat([posterior.mean[:, [0, 2]], posterior.stddev[:, [0, 2]]], 1)
    assert_close(stacked.features(x), expected.detach())
    assert not stacked.features(x).requires_grad
    assert torch.equal(stacked.classify(x), stacked.m2.classify(posterior.mean[:, [0, 2]]))


@pytest.mark.parametrize("active", [[0, 2], [0, 1, 2]])
def test_m1m2_with_the_prior_of_m1_in_place_of_m2_has_the_elbo_of_m1(active):
    stacked, x = stacked_on(Encoder(6, 3, [4]), active), torch.rand(1, 6).bernoulli().expand(100_000, 6)

    def prior(z1, *_):
        return Normal(0, 1).log_prob(z1).sum(1)

    stacked.m2.labeled_elbo = stacked.m2.unlabeled_elbo = prior
    with torch.no_grad():
        reference = stacked.m1.elbo(x)
        for values in (stacked.unlabeled_elbo(x), stacked.labeled_elbo(x, torch.zeros(len(x)).long())):
            standard_error = (values.var() + reference.var()).sqrt() / len(x) ** 0.5
            assert (values.mean() - reference.mean()).abs() < 5 * standard_error


def test_m1m2_trains_both_models_on_pixels():
    stacked, x = stacked_on(Encoder(6, 3, [4]), [0, 2]), torch.rand(16, 6).bernoulli()
    stacked.unlabeled_elbo(x).mean().backward()
    for name, parameter in stacked.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert stacked.classifier(x).probs.shape == (16, 5)
    for bound in (stacked.unlabeled_elbo, lambda x: stacked.labeled_elbo(x, torch.zeros(16).long())):
        with pytest.raises(ValueError, match="divide 8-bit images by 255"):
            bound(255 * torch.ones(16, 6))


def skipping():
    plain = stacked_on(Encoder(6, 3, [4]), [0, 2])
    m1 = VAE(plain.m1.encoder, BernoulliDecoder(3, 6, [4], 5))
    return SkipSemiSupervisedVAE(m1, plain.m2, plain.active, Classifier(6, 5, [4]))


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


def test_the_labelled_bound_with_skips_term_by_term():
    """log p(x|y, z1) + log p(z1|y, z2) + log p(y) − KL(q(z2|z1, y) ‖ p(z2)) + H(q(z1|x)) − KL of the unused."""
    model, x, y = skipping(), torch.rand(7, 6).bernoulli(), torch.arange(7) % 5
    torch.manual_seed(1)
    posterior = model.m1.encoder(x).base_dist
    z, noise = posterior.rsample(), torch.randn(7, 2)
    z1 = z[:, [0, 2]]
    posterior2 = model.m2.encoder(z1, y)
    z2 = posterior2.mean + posterior2.stddev * noise
    expected = model.m1.decoder(z, y).log_prob(x) + model.m2.decoder(z2, y).log_prob(z1) - math.log(5)
    expected -= 0.5 * (posterior2.mean**2 + posterior2.variance - 1 - posterior2.variance.log()).sum(1)
    expected += (0.5 * math.log(2 * math.pi * math.e) + posterior.stddev[:, [0, 2]].log()).sum(1)
    expected -= 0.5 * (posterior.mean**2 + posterior.variance - 1 - posterior.variance.log())[:, 1]
    assert_close(seeded(model.labeled_elbo, x, y), expected)


def test_skips_need_a_decoder_that_takes_the_label_and_classifiers_that_agree():
    plain = stacked_on(Encoder(6, 3, [4]), [0, 2])
    with pytest.raises(ValueError, match="num_classes"):
        SkipSemiSupervisedVAE(plain.m1, plain.m2, plain.active, Classifier(6, 5, [4]))
    with pytest.raises(ValueError, match="4 classes of images, but M2 has 5"):
        SkipSemiSupervisedVAE(skipping().m1, plain.m2, plain.active, Classifier(6, 4, [4]))


def test_the_unlabelled_bound_with_skips_sums_over_what_the_classifier_of_images_says():
    model, x = skipping(), torch.rand(7, 6).bernoulli()
    bounds = torch.stack([seeded(model.labeled_elbo, x, torch.full((7,), k)) for k in range(5)], 1)  # (B, K)
    log_probs = model.image_classifier(x).logits
    expected = (log_probs.exp() * (bounds - log_probs)).sum(1)
    for sum_over_labels in (marginalize, marginalize_loop):
        assert_close(seeded(model.unlabeled_elbo, x, sum_over_labels), expected)


def test_skips_whose_label_column_is_zero_leave_the_bound_of_m1m2():
    model, x, y = skipping(), torch.rand(7, 6).bernoulli(), torch.arange(7) % 5
    nn.init.zeros_(model.m1.decoder.network.label_column.weight)
    plain = BernoulliDecoder(3, 6, [4])
    plain.network.load_state_dict(model.m1.decoder.network.state_dict(), strict=False)
    stacked = StackedSemiSupervisedVAE(VAE(model.m1.encoder, plain), model.m2, model.active)
    assert_close(seeded(model.labeled_elbo, x, y), seeded(stacked.labeled_elbo, x, y))


def test_m1m2_with_skips_trains_all_but_the_classifier_of_latents_and_classifies_images():
    model, x = skipping(), torch.rand(16, 6).bernoulli()
    model.unlabeled_elbo(x).mean().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == {f"m2.classifier.{name}" for name, _ in model.m2.classifier.named_parameters()}
    assert torch.equal(model.classifier(x).logits, model.image_classifier(x).logits)
    assert torch.equal(model.classify(x), model.image_classifier(x).logits.argmax(1))


def test_m1m2_draws_its_features_from_the_posterior_anew():
    features = torch.tensor([[3.0, -1.0, 0.5, 2.0]]).expand(100_000, 4)
    draws = StackedSemiSupervisedVAE.draw(features, torch.Generator().manual_seed(0))
    standard_error = features[0, 2:] / len(draws) ** 0.5
    assert ((draws.mean(0) - features[0, :2]).abs() < 5 * standard_error).all()
    assert ((draws.std(0) - features[0, 2:]).abs() < 5 * standard_error).all()
    again, other = (StackedSemiSupervisedVAE.draw(features, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(draws, again)
    assert not torch.equal(draws, other)


def test_active_latents_are_those_whose_mean_follows_the_data():
    encoder, x = Encoder(6, 3, [4]), torch.rand(1000, 6).bernoulli()
    nn.init.zeros_(encoder.network.rest[-1].weight)
    vae = VAE(encoder, BernoulliDecoder(3, 6, [4]))
    assert active_latents(vae, x).tolist() == []
    nn.init.ones_(encoder.network.rest[-1].weight[1])
    assert active_latents(vae, x).tolist() == [1]
