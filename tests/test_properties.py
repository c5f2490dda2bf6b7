"""What holds for every shape and every value: bounds, likelihoods, networks, models."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_networks import DECODERS
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from torch.testing import assert_close

from vae.distributions import ContinuousBernoulli, IndependentBernoulli
from vae.gaussian import OptimalGaussianDecoder
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import Classifier, Encoder
from vae.objectives import unlabeled_elbo

seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 6)
classes = st.integers(2, 8)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
double = {"dtype": torch.float64}


@given(seeds, sizes, classes, st.floats(0, 4))
def test_no_label_posterior_beats_the_exact_one(seed, batch, num_classes, spread):
    torch.manual_seed(seed)
    bounds, probs = spread * torch.randn(batch, num_classes, **double), torch.rand(batch, num_classes, **double)
    q, evidence = Categorical(probs), bounds.logsumexp(1)
    value = unlabeled_elbo((q.probs * bounds).sum(1), q)
    assert (value <= evidence + 1e-12).all()
    assert_close(evidence - value, kl_divergence(q, Categorical(logits=bounds)), rtol=1e-6, atol=1e-9)


@given(st.floats(-1e4, 1e4), st.sampled_from([0.0, 1.0, 0.5, 1e-3, 254 / 255]))
def test_pixels_have_finite_log_probabilities_and_gradients_at_any_logit(logit, pixel):
    for likelihood in (ContinuousBernoulli, lambda logits: IndependentBernoulli(logits.expand(1))):
        logits = torch.tensor(logit, requires_grad=True)
        value = likelihood(logits).log_prob(torch.tensor(pixel))
        value.backward()
        assert value.isfinite()
        assert abs(logits.grad) <= 1 + 1e-5  # x less a mean, both in [0, 1]
    assert value <= 0


@given(seeds, sizes, shapes, st.floats(0.01, 100))
def test_no_common_scale_beats_the_optimal_one(seed, batch, x_shape, factor):
    torch.manual_seed(seed)
    decoder, z = OptimalGaussianDecoder(2, x_shape, [3]).double(), torch.randn(batch, 2, **double)
    mean, x = decoder(z).mean, 3 * torch.randn(batch, *x_shape, **double)
    best, root_mean_square = decoder(z).log_prob(x).sum(), (x - mean).square().mean().sqrt()
    assert_close(best, Normal(mean, root_mean_square).log_prob(x).sum())
    assert best >= Normal(mean, root_mean_square * factor).log_prob(x).sum() - 1e-9


hidden, decoders = st.lists(sizes, min_size=1, max_size=3), st.sampled_from(list(DECODERS.values()))


@given(seeds, sizes, shapes, sizes, hidden, classes, decoders)
def test_encoders_and_decoders_keep_shapes_and_treat_rows_alike(seed, batch, x_shape, z_dim, dims, num_classes, make):
    torch.manual_seed(seed)
    encoder, decoder = Encoder(x_shape, z_dim, dims, num_classes), make(z_dim, x_shape, dims, num_classes)
    x, y, rows = torch.rand(batch, *x_shape), torch.randint(num_classes, (batch,)), torch.randperm(batch)
    posterior, column = encoder(x, y), torch.arange(num_classes).unsqueeze(1)
    assert (posterior.batch_shape, posterior.event_shape) == ((batch,), (z_dim,))
    assert_close(encoder(x[rows], y[rows]).mean, posterior.mean[rows])
    z = encoder(x, column).rsample()
    assert z.shape == (num_classes, batch, z_dim)
    likelihood = decoder(z, column)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((num_classes, batch), x_shape)
    own = decoder(z[y, torch.arange(batch)], y)  # of each image's own label
    assert_close(own.log_prob(x), likelihood.log_prob(x)[y, torch.arange(batch)])


@given(seeds, sizes, shapes, decoders, st.sampled_from([torch.float32, torch.float64]))
def test_bounds_are_one_finite_number_per_image_even_of_black_ones(seed, batch, x_shape, make, dtype):
    torch.manual_seed(seed)
    of_any, of_one_scale = make(2, x_shape, [5]), OptimalGaussianDecoder(2, x_shape, [5])
    vae, optimal = (VAE(Encoder(x_shape, 2, [5]), decoder) for decoder in (of_any, of_one_scale))
    m2 = SemiSupervisedVAE(Encoder(x_shape, 2, [5], 3), make(2, x_shape, [5], 3), Classifier(x_shape, 3, [5]))
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
