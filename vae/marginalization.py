"""The sum over labels, E_q(y|x)[bound(y)] = Σ_y q(y|x) bound(y), which M2's unlabelled bound needs [2, eq. 7].

`bound` maps labels that broadcast against the batch (B,) to one value per example, say y ↦ −L(x, y).
[2] is in `vae.objectives`.
"""

import torch


def marginalize(bound, label_posterior):
    """All K labels in one pass: labels of shape (K, 1) make `bound` return (K, B). Returns (B,)."""
    probs = label_posterior.probs  # (B, K)
    labels = torch.arange(probs.shape[-1], device=probs.device).unsqueeze(1)  # (K, 1)
    return (probs.T * bound(labels)).sum(0)  # (K, B) -> (B,)


def marginalize_loop(bound, label_posterior):
    """The same sum, one label at a time: slower, and the reference that `marginalize` is tested against."""
    probs = label_posterior.probs  # (B, K)
    total = torch.zeros_like(probs[:, 0])
    for k in range(probs.shape[-1]):
        labels = torch.full_like(total, k, dtype=torch.long)  # (B,), every image pretends to be a k
        total = total + probs[:, k] * bound(labels)
    return total
