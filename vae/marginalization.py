"""The sum over labels, E_q(y|x)[bound(y)] = Σ_y q(y|x) bound(y), which M2's unlabeled bound needs [2, eq. 7].

`bound` maps labels that broadcast against the batch (B,) to one value per example, say y ↦ −L(x, y).
[2] is in `vae.objectives`.
[4] Liu, Regier, Tripuraneni, Jordan & McAuliffe 2019, Rao-Blackwellized Stochastic Gradients for Discrete
    Distributions, arXiv:1810.04777
"""

import torch
from torch.distributions import Categorical


def _probs(label_posterior):
    """Return q(y|x), (B, K), with 0 for what is below 1e-20: too little to change a sum in float32.

    Gradients multiplied by less soon are denormal numbers, with which a CPU takes ten times as long.
    """
    probs = label_posterior.probs
    return probs.where(probs > 1e-20, 0)


def marginalize(bound, label_posterior):
    """All K labels in one pass: labels of shape (K, 1) make `bound` return (K, B). Returns (B,)."""
    probs = _probs(label_posterior)  # (B, K)
    labels = torch.arange(probs.shape[-1], device=probs.device).unsqueeze(1)  # (K, 1)
    return (probs.T * bound(labels)).sum(0)  # (K, B) -> (B,)


def marginalize_loop(bound, label_posterior):
    """The same sum, one label at a time: slower, and the reference that `marginalize` is tested against."""
    probs = _probs(label_posterior)  # (B, K)
    total = torch.zeros_like(probs[:, 0])
    for k in range(probs.shape[-1]):
        labels = torch.full_like(total, k, dtype=torch.long)  # (B,), every image pretends to be a k
        total = total + probs[:, k] * bound(labels)
    return total


def check_topk(k, num_classes):
    """Raise ValueError unless 1 ≤ k < K."""
    if not 1 <= k < num_classes:
        raise ValueError(f"topk = {k} must lie in 1…{num_classes - 1}, where the last sums over all labels exactly")


def marginalize_topk(bound, label_posterior, k):
    """An unbiased estimate from k + 1 labels: the k most probable are summed, one of the others is drawn   [4].

    Unbiased in value and in gradient. Which label is drawn depends on q(y|x), so the gradient has a score-function
    term; the bound of the most probable label is its control variate. Raises ValueError unless 1 ≤ k < K.
    """
    log_probs, probs = label_posterior.logits, _probs(label_posterior)  # (B, K)
    check_topk(k, probs.shape[-1])
    top = probs.topk(k).indices  # (B, k)
    others = Categorical(logits=log_probs.detach().scatter(1, top, -torch.inf), validate_args=False)
    drawn = others.sample().unsqueeze(1)  # (B, 1)
    *top_bounds, drawn_bound = bound(torch.cat([top, drawn], 1).T)  # k + 1 values of shape (B,)
    top_probs = probs.gather(1, top).T  # (k, B)
    mass = 1 - top_probs.sum(0)  # (B,), the probability of all labels that `drawn` stands for
    control = top_bounds[0].detach()
    score = log_probs.gather(1, drawn).squeeze(1)
    gradient_only = mass.detach() * (drawn_bound.detach() - control) * score + control * mass
    value = (top_probs * torch.stack(top_bounds)).sum(0) + mass.detach() * drawn_bound
    return value + (gradient_only - gradient_only.detach())
