"""What holds for every shape and every value: bounds, sums over labels, likelihoods, networks, models, splits."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence
from torch.testing import assert_close

from vae.data import Batches, SemiSupervisedBatches, binarize, dequantize, labeled_split
from vae.evaluation import elbo_terms, log_likelihood
from vae.likelihoods import ContinuousBernoulli, IndependentBernoulli, OptimalNormal
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import (
    BernoulliDecoder,
    Classifier,
    ContinuousBernoulliDecoder,
    Encoder,
    GaussianDecoder,
    diagonal_normal,
)
from vae.objectives import elbo, importance_weighted_bound, j_alpha, labeled_elbo, stacked_elbo, unlabeled_elbo

seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 6)
classes = st.integers(2, 8)
double = {"dtype": torch.float64}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Terms:
    """Random x, posterior, likelihood and prior of a batch, and S draws of z from the posterior."""

    def __init__(self, seed, batch, z_dim, num_samples=1):
        torch.manual_seed(seed)
        self.x, self.logits = torch.rand(batch, 5, **double).round(), 3 * torch.randn(num_samples, batch, 5, **double)
        self.mean, self.scale = torch.randn(batch, z_dim, **double), torch.rand(batch, z_dim, **double) + 0.1
        self.z = self.mean + self.scale * torch.randn(num_samples, batch, z_dim, **double)
        self.prior = diagonal_normal(torch.zeros(z_dim, **double), torch.ones(z_dim, **double))
        self.posterior = diagonal_normal(self.mean, self.scale)
        self.likelihood = Independent(Bernoulli(logits=self.logits), 1)

    def bound(self, order):
        likelihood = Independent(Bernoulli(logits=self.logits[order]), 1)
        return importance_weighted_bound(self.x, self.z[order], self.posterior, likelihood, self.prior)

    def log_weights(self):
        return self.likelihood.log_prob(self.x) + self.prior.log_prob(self.z) - self.posterior.log_prob(self.z)


@given(seeds, sizes, sizes, st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_the_elbo_of_an_image_depends_on_no_other_image(seed, batch, z_dim, rows):
    t = Terms(seed, batch, z_dim)
    rows = torch.tensor(rows) % batch  # some twice, some not at all
    picked = diagonal_normal(t.mean[rows], t.scale[rows]), Independent(Bernoulli(logits=t.logits[0, rows]), 1)
    assert_close(elbo(t.x[rows], *picked, t.prior), elbo(t.x, t.posterior, t.likelihood, t.prior)[0, rows])


@given(seeds, sizes, sizes, st.floats(-2, 3))
def test_the_elbo_is_linear_in_the_weight_of_its_divergence(seed, batch, z_dim, weight):
    t = Terms(seed, batch, z_dim)
    none, one, some = (elbo(t.x, t.posterior, t.likelihood, t.prior, kl_weight=w)[0] for w in (0, 1, weight))
    assert_close(none, t.likelihood.log_prob(t.x)[0])
    assert (one <= none + 1e-12).all()
    assert_close(some, none + weight * (one - none))


@given(seeds, sizes, sizes, st.permutations(range(6)))
def test_the_importance_weighted_bound_does_not_depend_on_the_order_of_samples(seed, batch, z_dim, order):
    t = Terms(seed, batch, z_dim, len(order))
    assert_close(t.bound(order), t.bound(sorted(order)))
    assert_close(t.bound([*order, *order]), t.bound(order))  # nor on how often they are all repeated


@given(seeds, sizes, sizes, sizes)
def test_the_importance_weighted_bound_lies_between_mean_and_maximum(seed, batch, z_dim, num_samples):
    t = Terms(seed, batch, z_dim, num_samples)
    bound, weights = t.bound(range(num_samples)), t.log_weights()
    assert (weights.mean(0) <= bound + 1e-9).all()
    assert (bound <= weights.max(0).values + 1e-9).all()
    assert_close(bound.exp(), weights.exp().mean(0))
    assert_close(t.bound([0]), weights[0])


@given(seeds, sizes, sizes, classes)
def test_the_labeled_elbo_prices_the_label(seed, batch, z_dim, num_classes):
    t, label_prior = Terms(seed, batch, z_dim), Categorical(logits=torch.randn(num_classes, **double))
    y = torch.randint(num_classes, (batch,))
    value = labeled_elbo(t.x, y, t.posterior, t.likelihood, t.prior, label_prior)
    assert_close(value - elbo(t.x, t.posterior, t.likelihood, t.prior), label_prior.probs[y].log().unsqueeze(0))


@given(seeds, sizes, classes, st.floats(0, 4))
def test_no_label_posterior_beats_the_exact_one(seed, batch, num_classes, spread):
    torch.manual_seed(seed)
    bounds, q = (
        spread * torch.randn(batch, num_classes, **double),
        Categorical(torch.rand(batch, num_classes, **double)),
    )
    value = unlabeled_elbo((q.probs * bounds).sum(1), q)
    assert (value <= bounds.logsumexp(1) + 1e-12).all()
    divergence = kl_divergence(q, Categorical(logits=bounds))
    assert_close(bounds.logsumexp(1) - value, divergence, rtol=1e-6, atol=1e-9)


@given(seeds, sizes, st.lists(st.booleans(), min_size=1, max_size=6))
def test_latents_that_m2_describes_cost_their_negative_entropy_and_others_their_divergence(seed, batch, active):
    t, of_latents = Terms(seed, batch, len(active)), torch.randn(batch, **double)
    indices = torch.tensor(active).nonzero().flatten()
    value = stacked_elbo(t.x, t.posterior.base_dist, t.likelihood, indices, of_latents)[0]
    expected = t.likelihood.log_prob(t.x)[0] + of_latents
    for latent, described in enumerate(active):
        mean, scale = t.mean[:, latent], t.scale[:, latent]
        entropy = (scale * math.sqrt(2 * math.pi * math.e)).log()
        expected += entropy if described else (1 + 2 * scale.log() - mean**2 - scale**2) / 2
    assert_close(value, expected)


@given(seeds, sizes, sizes, st.integers(0, 50), st.integers(1, 50), st.floats(0, 9))
def test_j_alpha_weighs_each_kind_by_how_many_there_are(seed, batch, other_batch, labeled, unlabeled, alpha):
    torch.manual_seed(seed)
    terms = torch.randn(batch, **double), torch.randn(other_batch, **double), torch.randn(batch, **double)
    value = j_alpha(*terms, alpha=alpha, num_labeled=labeled, num_unlabeled=unlabeled)
    weights = (t / (labeled + unlabeled) for t in (labeled, unlabeled, alpha))
    assert_close(value, sum(weight * term.mean() for weight, term in zip(weights, terms, strict=True)))


def value_and_gradients(method, logits, bounds):
    """Of Σ_y q(y|x) bounds[x, y], image n weighing n: the sums, and gradients in `logits` and `bounds`, both (B, K)."""
    leaves = [t.clone().requires_grad_() for t in (logits, bounds)]
    value = method(lambda y: leaves[1][torch.arange(len(bounds)), y], Categorical(logits=leaves[0]))
    return value, *torch.autograd.grad((value * torch.arange(1, len(value) + 1)).sum(), leaves)


@given(seeds, sizes, classes, st.sampled_from([0.1, 3.0, 40.0]))
def test_one_pass_a_loop_and_all_labels_but_one_agree_with_their_gradients(seed, batch, num_classes, spread):
    torch.manual_seed(seed)
    terms = spread * torch.randn(batch, num_classes, **double), 100 * torch.randn(batch, num_classes, **double)
    results = [
        value_and_gradients(method, *terms)
        for method in (marginalize, marginalize_loop, partial(marginalize_topk, k=num_classes - 1))
    ]
    for loop_or_topk in results[1:]:
        for one_pass, other in zip(results[0], loop_or_topk, strict=True):
            assert_close(one_pass, other, rtol=1e-7, atol=1e-9)


@given(seeds, sizes, classes, st.data())
def test_what_is_the_same_for_all_labels_is_its_own_sum(seed, batch, num_classes, data):
    torch.manual_seed(seed)
    q, same = Categorical(logits=5 * torch.randn(batch, num_classes, **double)), torch.randn(batch, **double)
    k = data.draw(st.integers(1, num_classes - 1))
    for method in (marginalize, marginalize_loop, partial(marginalize_topk, k=k)):
        assert_close(method(lambda y: same + 0 * y, q), same)


@given(st.floats(-1e4, 1e4), st.sampled_from([0.0, 1.0, 0.5, 1e-3, 254 / 255]))
def test_pixels_have_finite_log_probabilities_and_gradients_at_any_logit(logit, pixel):
    for likelihood in (ContinuousBernoulli, lambda logits: IndependentBernoulli(logits.expand(1))):
        logits = torch.tensor(logit, requires_grad=True)
        value = likelihood(logits).log_prob(torch.tensor(pixel))
        value.backward()
        assert value.isfinite()
        assert abs(logits.grad) <= 1 + 1e-5  # x less a mean, both in [0, 1]
    assert value <= 0


@given(st.floats(-1e4, 1e4), st.floats(0, 1))
def test_the_continuous_bernoulli_is_symmetric_and_has_its_mean_inside(logit, x):
    left, right = (ContinuousBernoulli(torch.tensor(s * logit, **double)) for s in (1, -1))
    x = torch.tensor(x, **double)
    assert_close(left.log_prob(x), right.log_prob(1 - x), rtol=1e-9, atol=1e-9)
    assert 0 <= left.mean <= 1
    assert_close(left.mean + right.mean, torch.tensor(1.0, **double))


@given(seeds, sizes, sizes, st.floats(0.01, 100))
def test_no_common_scale_beats_the_optimal_one(seed, batch, x_dim, factor):
    torch.manual_seed(seed)
    mean, x = torch.randn(2, batch, x_dim, **double)
    best = OptimalNormal(mean, torch.ones((), **double)).log_prob(x).sum()
    root_mean_square = (x - mean).square().mean().sqrt()
    assert best >= Normal(mean, root_mean_square * factor).log_prob(x).sum() - 1e-9


DECODERS = [
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    *(partial(GaussianDecoder, scale=scale) for scale in (0.5, "global", "optimal", "example", "pixel")),
]
hidden = st.lists(sizes, min_size=1, max_size=3)


@given(seeds, sizes, sizes, sizes, hidden, classes, st.sampled_from(DECODERS))
def test_encoders_and_decoders_keep_shapes_and_treat_rows_alike(seed, batch, x_dim, z_dim, dims, num_classes, make):
    torch.manual_seed(seed)
    encoder, decoder = Encoder(x_dim, z_dim, dims, num_classes), make(z_dim, x_dim, dims, num_classes).eval()
    x, y, rows = torch.rand(batch, x_dim), torch.randint(num_classes, (batch,)), torch.randperm(batch)
    posterior, column = encoder(x, y), torch.arange(num_classes).unsqueeze(1)
    assert (posterior.batch_shape, posterior.event_shape) == ((batch,), (z_dim,))
    assert_close(encoder(x[rows], y[rows]).mean, posterior.mean[rows])
    z = encoder(x, column).rsample()
    assert z.shape == (num_classes, batch, z_dim)
    likelihood = decoder(z, column)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((num_classes, batch), (x_dim,))
    own = decoder(z[y, torch.arange(batch)], y)  # of each image's own label
    assert_close(own.log_prob(x), likelihood.log_prob(x)[y, torch.arange(batch)])


@given(seeds, sizes, st.sampled_from(DECODERS), st.sampled_from([torch.float32, torch.float64]))
def test_bounds_are_one_finite_number_per_image_even_of_black_ones(seed, batch, make, dtype):
    torch.manual_seed(seed)
    vae = VAE(Encoder(6, 2, [5]), make(2, 6, [5])).to(dtype)
    m2 = SemiSupervisedVAE(Encoder(6, 2, [5], 3), make(2, 6, [5], 3), Classifier(6, 3, [5])).to(dtype)
    for x in (torch.zeros(batch, 6, dtype=dtype), torch.rand(batch, 6, dtype=dtype)):
        y = torch.zeros(batch, dtype=torch.long)
        bounds = [vae.elbo(x), vae.importance_weighted_bound(x, 3), m2.labeled_elbo(x, y), m2.unlabeled_elbo(x)]
        for bound in bounds:
            assert (bound.shape, bound.dtype) == ((batch,), dtype)
            assert bound.isfinite().all()
        parameters = [*vae.parameters(), *m2.parameters()]
        gradients = torch.autograd.grad(sum(bound.mean() for bound in bounds), parameters, allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        assert (vae.reconstruct(x).shape, m2.reconstruct(x).shape, m2.classify(x).shape) == (x.shape, x.shape, (batch,))


@given(seeds, sizes, classes)
def test_all_labels_at_once_are_each_label_on_its_own(seed, batch, num_classes):
    torch.manual_seed(seed)
    m2 = SemiSupervisedVAE(
        Encoder(6, 2, [5], num_classes), BernoulliDecoder(2, 6, [5], num_classes), Classifier(6, num_classes, [5])
    )
    x = torch.rand(batch, 6)
    results = []
    for y in (torch.arange(num_classes).unsqueeze(1), *torch.arange(num_classes).unsqueeze(1).expand(-1, batch)):
        torch.manual_seed(seed)
        results.append(m2.labeled_elbo(x, y))
    assert_close(results[0], torch.stack(results[1:]))


class KnownNoise:
    """A posterior that takes its noise from a list, so that chunks of samples can be compared with all at once."""

    def __init__(self, posterior, noise):
        self.posterior, self.noise, self.log_prob = posterior, noise, posterior.log_prob

    def rsample(self, shape):
        return self.posterior.mean + self.posterior.stddev * torch.stack([self.noise.pop(0) for _ in range(*shape)])


@given(seeds, sizes, st.integers(1, 12), st.integers(1, 15))
def test_log_likelihood_does_not_depend_on_the_chunks(seed, batch, num_samples, chunk_size):
    torch.manual_seed(seed)
    vae, x = VAE(Encoder(6, 2, [5]), BernoulliDecoder(2, 6, [5])).double(), torch.rand(batch, 6, **double).round()
    noise, encode, results = torch.randn(num_samples, batch, 2, **double), vae.encoder.forward, []
    for size in (chunk_size, num_samples):
        left = list(noise)
        vae.encoder.forward = lambda x, left=left: KnownNoise(encode(x), left)
        results.append(log_likelihood(vae, x, num_samples, size))
        assert not left
    assert_close(*results)


@given(seeds, st.integers(1, 30), st.integers(1, 40))
def test_terms_of_the_elbo_add_up_whatever_the_chunks(seed, batch, chunk_size):
    torch.manual_seed(seed)
    vae, x = VAE(Encoder(6, 2, [5]), BernoulliDecoder(2, 6, [5])).double(), torch.rand(batch, 6, **double)
    results = []
    for size in (chunk_size, batch):
        torch.manual_seed(seed)
        results.append(elbo_terms(vae, x, size))
    assert results[0] == pytest.approx(results[1], abs=1e-9)
    parts = results[0]
    assert parts["elbo"] == pytest.approx(
        parts["log_likelihood"] - parts["mutual_information"] - parts["kl_to_prior"], abs=1e-9
    )


@given(seeds, classes, st.integers(1, 5), st.integers(0, 4))
def test_labeled_splits_are_balanced_disjoint_and_complete(seed, num_classes, per_class, more):
    counts = torch.randint(per_class, per_class + more + 1, (num_classes,), generator=seeded(seed))
    labels = torch.arange(num_classes).repeat_interleave(counts)
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    labeled, unlabeled = labeled_split(labels, per_class * num_classes, seeded(seed), num_classes)
    assert labels[labeled].bincount(minlength=num_classes).tolist() == [per_class] * num_classes
    assert sorted([*labeled.tolist(), *unlabeled.tolist()]) == list(range(len(labels)))


@given(seeds, st.integers(1, 20), st.data())
def test_an_epoch_holds_no_row_twice_and_loses_less_than_a_batch(seed, num_rows, data):
    size = data.draw(st.integers(1, num_rows))
    batches = Batches(torch.arange(num_rows).unsqueeze(1), size, seeded(seed))
    epoch = torch.cat(list(batches)).flatten().tolist()
    assert len(epoch) == len(batches) * size == len(set(epoch))
    assert 0 <= num_rows - len(epoch) < size


@given(seeds, st.integers(1, 9), st.integers(1, 20), st.data())
def test_labels_stay_with_their_images_and_all_are_seen_as_often(seed, labeled, unlabeled, data):
    num_labeled, num_unlabeled = data.draw(st.integers(1, labeled)), data.draw(st.integers(1, unlabeled))
    labels = torch.randint(10, (labeled,), generator=seeded(seed))
    rows = torch.arange(labeled) / 10 + labels  # the label before the point
    batches = SemiSupervisedBatches(
        rows.unsqueeze(1), labels, torch.ones(unlabeled, 1), num_labeled, num_unlabeled, seeded(seed), lambda x, _: x
    )
    seen = []
    for x, y, x_unlabeled in batches:
        assert (len(x), len(x_unlabeled)) == (num_labeled, num_unlabeled)
        assert torch.equal(x.flatten().floor().long(), y)
        seen += x.flatten().tolist()
    per_pass = labeled - labeled % num_labeled
    for start in range(0, len(seen), per_pass):
        part = seen[start : start + per_pass]
        assert len(set(part)) == len(part)


@given(seeds, sizes, sizes)
def test_binary_pixels_are_zeros_and_ones_and_stay_as_they_are(seed, batch, x_dim):
    grey = torch.rand(batch, x_dim, generator=seeded(seed))
    once = binarize(grey, seeded(seed))
    assert once.dtype == torch.float32
    assert ((once == 0) | (once == 1)).all()
    assert torch.equal(binarize(once, seeded(seed + 1)), once)


@given(seeds, st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_dequantized_pixels_lie_below_one_and_tell_their_level(seed, levels):
    levels = torch.tensor(levels)
    values, again = (dequantize((levels / 255).unsqueeze(0), seeded(seed)) for _ in range(2))
    assert torch.equal(values, again)
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.equal((256 * values[0]).floor().long(), levels)
