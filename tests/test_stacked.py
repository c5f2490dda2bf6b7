"""M1+M2, plain and with skips: what the bounds are made of, where gradients go, what is drawn and inferred."""

import math

import pytest
import torch
from test_models import PRIOR, FixedEncoder, LinearDecoder, assert_label_frequencies, assert_moments, assert_unbiased
from torch import nn
from torch.distributions import Categorical, Normal
from torch.testing import assert_close

from vae.distributions import diagonal_normal
from vae.gaussian import GaussianDecoder
from vae.marginalization import marginalize, marginalize_loop
from vae.models import VAE, ConditionalVAE, SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.stacked import SkipSemiSupervisedVAE, StackedSemiSupervisedVAE


def networks(dim):
    """M2's encoder and decoder of `dim` latents of M1."""
    return Encoder(dim, 2, [4], 4), GaussianDecoder(2, dim, [4], 4)


def stacked(active=(0, 2), label_prior=None):
    m1 = VAE(Encoder(6, 3, [4]), BernoulliDecoder(3, 6, [4]))
    m2 = SemiSupervisedVAE(*networks(len(active)), Classifier(len(active), 4, [4]), label_prior)
    return StackedSemiSupervisedVAE(m1, m2, torch.tensor(active))


def skipping(active=(0, 2), label_prior=None):
    m1 = VAE(Encoder(6, 3, [4]), BernoulliDecoder(3, 6, [4], 4))
    m2 = ConditionalVAE(*networks(len(active)), 4, label_prior)
    return SkipSemiSupervisedVAE(m1, m2, torch.tensor(active), Classifier(6, 4, [4]))


both = pytest.mark.parametrize("make", [stacked, skipping])


def images(num):
    return torch.rand(num, 6).bernoulli()


def seeded(function, *arguments):
    torch.manual_seed(1)
    return function(*arguments)


@both
@pytest.mark.parametrize("active", [[1], [1, 0]])
def test_with_m1s_prior_in_place_of_m2_the_bound_and_its_gradient_are_m1s(make, active):
    """In closed form, for a linear M1, whose encoder learns from both the likelihood and M2's bound of its latents."""
    model, x, num = make(active), torch.randn(1, 6), 20_000
    model.m1 = VAE(FixedEncoder(num), LinearDecoder())
    encoder, decoder = model.m1.encoder, model.m1.decoder

    def prior(z1, *_):
        return Normal(0, 1).log_prob(z1).sum(1)

    model.m2.labeled_elbo = model.m2.unlabeled_elbo = model.m2.elbo_given_noise = prior
    exact = decoder.elbo(x, encoder(x).expand((4,)), 0 if make is stacked else decoder.offsets)  # (4,), of each label
    assert_unbiased(model.labeled_elbo(x.expand(num, 6), torch.ones(num).long()), exact[1], encoder)
    q = Categorical(torch.eye(4)[0]) if make is stacked else model.label_posterior(x)
    bound = (q.probs * exact).sum() + q.entropy().sum()
    assert_unbiased(model.unlabeled_elbo(x.expand(num, 6)), bound, encoder)


@both
def test_images_without_labels_train_every_part_of_both_models(make):
    model, x = make(), images(16)
    model.unlabeled_elbo(x).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert model.unlabeled_elbo(x, lambda bound, q: q.probs[:, 0] * torch.nan).isnan().all()  # the sum is the caller's


def test_the_labeled_bound_with_skips_term_by_term():
    """log p(x|y, z1) + log p(z1|y, z2) + log p(y) − KL(q(z2|z1, y) ‖ p(z2)) + H(q(z1|x)) − KL of the unused."""
    model, x, y = skipping(label_prior=PRIOR), images(7), torch.arange(7) % 4
    torch.manual_seed(1)
    posterior = model.m1.encoder(x).base_dist
    z, noise = posterior.rsample(), torch.randn(7, 2)
    z1 = z[:, [0, 2]]
    posterior2 = model.m2.encoder(z1, y)
    z2 = posterior2.mean + posterior2.stddev * noise
    expected = model.m1.decoder(z, y).log_prob(x) + model.m2.decoder(z2, y).log_prob(z1) + PRIOR[y].log()
    expected -= 0.5 * (posterior2.mean**2 + posterior2.variance - 1 - posterior2.variance.log()).sum(1)
    expected += (0.5 * math.log(2 * math.pi * math.e) + posterior.stddev[:, [0, 2]].log()).sum(1)
    expected -= 0.5 * (posterior.mean**2 + posterior.variance - 1 - posterior.variance.log())[:, 1]
    assert_close(seeded(model.labeled_elbo, x, y), expected)


def test_the_unlabeled_bound_with_skips_sums_over_what_the_classifier_of_images_says():
    model, x = skipping(), images(7)
    bounds = torch.stack([seeded(model.labeled_elbo, x, torch.full((7,), k)) for k in range(4)], 1)  # (B, K)
    log_probs = model.classifier(x).logits
    assert torch.equal(model.label_posterior(x).logits, log_probs)
    assert torch.equal(model.classify(x), log_probs.argmax(1))
    assert_close(seeded(model.labeled_elbo, x, torch.arange(4).unsqueeze(1)), bounds.T)
    for sum_over_labels in (marginalize, marginalize_loop):
        expected = (log_probs.exp() * (bounds - log_probs)).sum(1)
        assert_close(seeded(model.unlabeled_elbo, x, sum_over_labels), expected)


def test_skips_whose_label_embedding_is_zero_leave_the_bound_of_m1m2():
    model, x, y = skipping(), images(7), torch.arange(7) % 4
    nn.init.zeros_(model.m1.decoder.network.label_embedding.weight)
    plain = stacked()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_close(seeded(model.labeled_elbo, x, y), seeded(plain.labeled_elbo, x, y))


def test_skips_need_a_decoder_that_takes_the_label_and_classifiers_that_agree():
    plain, skips = stacked(), skipping()
    with pytest.raises(ValueError, match="num_classes"):
        SkipSemiSupervisedVAE(plain.m1, skips.m2, skips.active, skips.classifier)
    with pytest.raises(ValueError, match="5 classes of images, but M2 has 4"):
        SkipSemiSupervisedVAE(skips.m1, skips.m2, skips.active, Classifier(6, 5, [4]))


@both
def test_samples_go_from_y_to_z2_to_z1_to_x(make):
    """z1's active latents are M2's, the other one M1's; with skips x depends on that same y, too."""
    model, weight, labels = make([2, 0], PRIOR), torch.tensor([[1.0, 0.5], [-2.0, 0.0]]), []
    assert model.sample(5).shape == (5, 6)
    assert set(model.sample(50).unique().tolist()) == {0, 1}

    def decode_z2(z2, y):
        mean = 100 * y.unsqueeze(1) + z2 @ weight.T
        return diagonal_normal(mean, torch.full_like(mean, 0.5))

    def decode_z1(z1, y=None):
        labels.append(y)
        return diagonal_normal(z1, torch.ones_like(z1))

    model.m2.decoder.forward, model.m1.decoder.forward = decode_z2, decode_z1
    z1 = model.sample(10_000, mean=True)
    y = (z1[:, 2] / 100).round().long()
    assert_label_frequencies(y, PRIOR)
    noise = torch.cat([z1[:, [2, 0]] - 100 * y.unsqueeze(1), z1[:, 1:2]], 1)
    covariance = torch.block_diag(weight @ weight.T + 0.25 * torch.eye(2), torch.eye(1))
    assert_moments(noise, torch.zeros(3), covariance)
    assert torch.equal(labels[0], y) if make is skipping else labels == [None]
    given = model.sample(3, torch.tensor([3, 0, 2]), mean=True)
    assert (given[:, 2] / 100).round().tolist() == [3, 0, 2]
    for label in (4, -1):
        with pytest.raises(ValueError, match="0…3"):
            model.sample(2, label)


def test_m1m2_sees_the_active_latents_of_m1():
    model, x = stacked(), torch.rand(9, 6)
    posterior = model.m1.encoder(x)
    expected = torch.cat([posterior.mean[:, [0, 2]], posterior.stddev[:, [0, 2]]], 1)
    assert_close(model.features(x), expected.detach())
    assert not model.features(x).requires_grad


def test_m1m2_draws_its_features_from_the_posterior_anew():
    features = torch.tensor([[3.0, -1.0, 0.5, 2.0]]).expand(100_000, 4)
    draws = StackedSemiSupervisedVAE.draw(features, torch.Generator().manual_seed(0))
    standard_error = features[0, 2:] / len(draws) ** 0.5
    assert ((draws.mean(0) - features[0, :2]).abs() < 5 * standard_error).all()
    assert ((draws.std(0) - features[0, 2:]).abs() < 5 * standard_error).all()
    again, other = (StackedSemiSupervisedVAE.draw(features, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(draws, again)
    assert not torch.equal(draws, other)


def test_m1m2_infers_the_label_at_a_draw_in_training_and_at_the_mean_in_evaluation():
    model, x, y = stacked(), torch.rand(50, 6), torch.arange(50) % 4
    nn.init.constant_(model.m1.encoder.network.output.bias[3:], 2)  # a scale of about 7: draws differ
    mean = model.m1.encoder(x).mean[:, [0, 2]]
    at_mean = model.m2.classifier(mean).logits
    one, other = model.train().label_posterior(x).logits, model.label_posterior(x).logits
    assert len({tuple(logits.argmax(1).tolist()) for logits in (one, other, at_mean)}) == 3
    assert torch.equal(model.classify(x), at_mean.argmax(1))  # never at a draw
    model.label_posterior(x).log_prob(y).sum().backward()
    assert (model.m1.encoder.network.output.bias.grad[[0, 2, 3, 5]] != 0).all()  # M1 learns from labels, too
    assert_close(model.eval().label_posterior(x).logits, at_mean)
    assert torch.equal(model.classify(x), at_mean.argmax(1))
