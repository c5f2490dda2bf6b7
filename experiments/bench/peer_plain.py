"""M2 of this package as [2, equation 9] says it and no more: all of it learns from the first step on.

The sum over labels is exact, one label after the other. [2] is in `vae.objectives`.
"""

from itertools import chain, repeat

import torch

from vae.data import binarize
from vae.marginalization import marginalize_loop
from vae.objectives import m2_objective


def build_learner(task, method):
    """Return a function that makes one update of M2 as `method` sets it, and one that classifies images."""
    m2, recipe = method.build(task), method.recipe
    batches = task.batches(task.data.train_images, method, binarize)
    stream, alpha = chain.from_iterable(repeat(batches)), recipe.alpha_per_image * batches.num_rows
    sizes = {"num_labeled": batches.num_labeled, "num_unlabeled": batches.num_unlabeled}
    weight_decay = recipe.weight_prior / batches.num_rows
    optimizer = torch.optim.Adam(m2.parameters(), lr=recipe.lr, weight_decay=weight_decay, fused=True)

    def update():
        x, y, x_unlabeled = next(stream)
        bounds = m2.labeled_elbo(x, y), m2.unlabeled_elbo(x_unlabeled, marginalize_loop)
        loss = -m2_objective(*bounds, m2.label_posterior(x).log_prob(y), alpha=alpha, **sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update, m2.classify
