"""The theory of both papers on one screen: evidence lower bounds, in nats, one value per example.

Pure functions of distributions; higher is better. The mean over the batch is taken once, where the loss is formed.

[1] Kingma & Welling 2013, Auto-Encoding Variational Bayes, arXiv:1312.6114
[2] Kingma, Rezende, Mohamed & Welling 2014, Semi-supervised Learning with Deep Generative Models, arXiv:1406.5298
[3] Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv:1509.00519
[4] is in `vae.marginalization`
[5] Tucker, Lawson, Gu & Maddison 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives,
    arXiv:1810.04152
"""

import math

from torch.distributions import kl_divergence

from vae.distributions import diagonal_normal


def elbo(x, posterior, likelihood, prior, kl_weight=1):
    """M1: log p(x) ≥ E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z))   [1, eq. 3; 2, eq. 5].

    `likelihood` is p(x|z) at one reparameterised draw z ~ q(z|x); the divergence is in closed form [1, appendix B].
    What it returns is no bound if `kl_weight` is below 1, as at the start of training (see `vae.recipes.M1Recipe`).
    """
    return likelihood.log_prob(x) - kl_weight * kl_divergence(posterior, prior)


def importance_weighted_bound(x, z, posterior, likelihood, prior):
    """M1: log p(x) ≥ E[log 1/S Σ_s p(x|z_s) p(z_s) / q(z_s|x)]   [3, eq. 8]; S = 1 is the ELBO, S → ∞ is log p(x).

    `z` of shape (S, B, Z) are draws from the posterior, and `likelihood` is p(x|z) of batch shape (S, B).
    """
    return _log_weights(x, z, posterior, likelihood, prior).logsumexp(0) - math.log(len(z))  # (S, B) -> (B,)


def doubly_reparameterized_bound(x, z, posterior, likelihood, prior):
    """M1: the same bound; its gradient in the encoder is another unbiased estimate, with less noise   [5].

    The noise of the usual estimate drowns its signal as S grows. Here the encoder is reached through the draws alone,
    the gradient of each weighted by the square of its share of the bound. `z` must be from `rsample`.
    """
    fixed = diagonal_normal(posterior.mean.detach(), posterior.stddev.detach())
    log_weights = _log_weights(x, z, fixed, likelihood, prior)
    shares = log_weights.detach().softmax(0).unsqueeze(-1)  # (S, B, 1)
    z.register_hook(lambda gradient: shares * gradient)
    return log_weights.logsumexp(0) - math.log(len(z))  # (S, B) -> (B,)


def _log_weights(x, z, posterior, likelihood, prior):
    return likelihood.log_prob(x) + prior.log_prob(z) - posterior.log_prob(z)  # (S, B)


def labeled_elbo(x, y, posterior, likelihood, prior, label_prior):
    """M2: log p(x, y) ≥ E_q(z|x,y)[log p(x|y, z)] + log p(y) − KL(q(z|x, y) ‖ p(z)) = −L(x, y)   [2, eq. 6]."""
    return elbo(x, posterior, likelihood, prior) + label_prior.log_prob(y)


def unlabeled_elbo(expected_labeled_elbo, label_posterior):
    """M2: log p(x) ≥ Σ_y q(y|x) (−L(x, y)) + H(q(y|x)) = −U(x)   [2, eq. 7].

    The sum over labels, `expected_labeled_elbo`, comes from `vae.marginalization`.
    """
    return expected_labeled_elbo + label_posterior.entropy()


def m2_objective(labeled_elbo, unlabeled_elbo, log_label_posterior, *, alpha, num_labeled, num_unlabeled):
    """M2: −J^α / N, the bound on the whole data set plus α E[log q(y|x)], per image   [2, eq. 8 and 9]; a scalar.

    J^α sums L over `num_labeled` images and U over `num_unlabeled`; here a batch of either kind stands for all of its
    kind, so the result does not depend on the batch sizes. The paper sets α = 0.1 N, N = num_labeled + num_unlabeled.
    """
    bound = num_labeled * labeled_elbo.mean() + num_unlabeled * unlabeled_elbo.mean()
    return (bound + alpha * log_label_posterior.mean()) / (num_labeled + num_unlabeled)
