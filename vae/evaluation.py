"""How good a trained model is: log p(x), the terms of its bound, how much of its code it uses, its errors."""

import math

import torch
from torch.distributions import Categorical, MixtureSameFamily, kl_divergence

from vae.data import check_labels
from vae.models import check_batch


def in_batches(function, *tensors, batch_size=1000):
    """Return `function(*rows)` of all rows, (N, …), computed in batches without gradient."""
    with torch.no_grad():
        batches = zip(*(torch.as_tensor(t).split(batch_size) for t in tensors), strict=True)
        return torch.cat([function(*rows) for rows in batches])


def evaluate_mean(value, *tensors, batch_size=1000):
    """Return the mean over all rows of `value(*rows)`, one value per example, as `in_batches` computes them."""
    return in_batches(value, *tensors, batch_size=batch_size).mean().item()


def error_rate(classify, images, labels):
    """Return the percentage of images (N, *X) whose label (N,) is not what `classify`, a model's method, says."""
    num_classes = getattr(getattr(classify, "__self__", None), "num_classes", None)
    check_labels(labels, len(images), num_classes)
    guesses = in_batches(classify, images)
    if guesses.shape != labels.shape:
        raise ValueError(f"classify must return one label an image, of shape (N,), not {tuple(guesses.shape)}")
    return 100 * (guesses != labels).sum().item() / len(labels)


def calibration_error(probabilities, labels):
    """Return the expected calibration error in % of probabilities (N, K) of labels (N,), a float.

    That is the gap between the probability of the most probable label and how often it is right, in the mean over rows,
    which are pooled in ten bins of that probability   [Guo et al. 2017, arXiv:1706.04599, equation 3].
    """
    top = probabilities.max(1)
    gaps = top.values - (top.indices == labels).to(probabilities.dtype)
    bins = (10 * top.values).long().clamp(max=9)
    by_bin = torch.zeros(10, dtype=gaps.dtype).index_add_(0, bins, gaps)
    return 100 * by_bin.abs().sum().item() / len(labels)


def mean_and_standard_error(values):
    """Return the mean of `values` (N,) and the standard error of it, as floats. ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"a standard error needs at least two values, not {len(values)}")
    values = values.cpu().double()  # float64 is not on every device
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def log_likelihood(vae, x, num_samples, chunk_size=100):
    """Estimate log p(x) in nats from `num_samples` draws of z, `chunk_size` of them in memory: (B, *X) -> (B,).

    The importance-weighted bound, on average below log p(x), and the tighter the more samples   [Burda et al. 2016].
    """
    sizes = [min(chunk_size, num_samples - done) for done in range(0, num_samples, chunk_size)]
    with torch.no_grad():
        sums = [vae.importance_weighted_bound(x, size) + math.log(size) for size in sizes]
    return torch.stack(sums).logsumexp(0) - math.log(num_samples)


def active_latents(vae, x):
    """Return the indices (A,) of the latents whose posterior mean has a standard deviation over x (N, *X) above 0.1.

    The others stay at the prior and say nothing of x   [Burda et al. 2016, section 5.2, a variance of 0.01].
    """
    check_batch(x, vae)
    if len(x) < 2:
        raise ValueError("one example has no spread; give at least two")
    means = in_batches(lambda rows: vae.encoder(rows).mean, x)
    return (means.std(0) > 0.1).nonzero().squeeze(1)


def elbo_terms(vae, x):
    """Return the ELBO of images x (N, *X) and the terms that it is made of, floats in nats, from one z per image.

    elbo = log_likelihood − mutual_information − kl_to_prior. The last two make up the mean of KL(q(z|x) ‖ p(z)): what z
    says of its image, at most log N; and how far 1/N Σ_n q(z|x_n) is from p(z)  [Hoffman & Johnson 2016, ELBO surgery].
    """
    check_batch(x, vae)
    with torch.no_grad():
        posterior = vae.encoder(x)
        aggregate = MixtureSameFamily(Categorical(x.new_ones(len(x))), posterior)
        z = posterior.sample()
        likelihood = in_batches(lambda x, z: vae.decoder(z).log_prob(x), x, z).mean().item()
        divergence = kl_divergence(posterior, vae.prior).mean().item()
        log_ratio = in_batches(lambda z: aggregate.log_prob(z) - vae.prior.log_prob(z), z, batch_size=10)  # of N terms
    kl_to_prior = log_ratio.mean().item()
    return {
        "elbo": likelihood - divergence,
        "log_likelihood": likelihood,
        "mutual_information": divergence - kl_to_prior,
        "kl_to_prior": kl_to_prior,
    }
