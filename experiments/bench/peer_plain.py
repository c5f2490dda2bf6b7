"""M2 of this package as [2, equation 9] says it and no more: all of it learns from the first step on.

The sum over labels is exact, one label after the other. [2] is in `vae.objectives`.
"""

from itertools import chain, repeat

import torch

from vae.data import binarize
from vae.marginalization import marginalize_loop
from vae.recipes import m2_loss


def build_learner(task, method):
    """Return a function that makes one update of M2 as `method` sets it, and one that classifies images."""
    m2, recipe = method.build(task), method.recipe
    batches = task.batches(task.data.train_images, method, binarize)
    stream, loss_fn = chain.from_iterable(repeat(batches)), m2_loss(m2, batches, recipe, marginalize_loop)
    weight_decay = recipe.weight_prior / batches.num_rows
    optimizer = torch.optim.Adam(m2.parameters(), lr=recipe.lr, weight_decay=weight_decay, fused=True)

    def update():
        loss = loss_fn(next(stream))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update, m2.classify
