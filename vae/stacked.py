"""M1+M2: M2 on M1's latents, as the paper [2] draws it. [2] is in `vae.objectives`.

Shapes: B batch, K classes, X one image's shape, Z latents of M1, A of them active.
"""

import torch

from vae.evaluation import in_batches
from vae.models import check_batch, sample_or_mean
from vae.saving import Module


class StackedSemiSupervisedVAE(Module):
    """M1+M2: p(x, z1, y, z2) = p(x|z1) p(z1|y, z2) p(y) p(z2)   [2, section 2].

    `m1` is a VAE of images, `m2` a SemiSupervisedVAE of its latents z1, those with the indices `active` (A,), which
    `vae.evaluation` finds; the others keep M1's prior. M1 is trained first, then M2 on its `features`.
    """

    def __init__(self, m1, m2, active):
        super().__init__()
        self.m1, self.m2, self.num_classes = m1, m2, m2.num_classes
        self.register_buffer("active", active)

    def features(self, x):
        """Return mean and standard deviation of q(z1|x), side by side: (B, *X) -> (B, 2A)."""
        check_batch(x, self.m1)

        def of_rows(rows):
            posterior = self.m1.encoder(rows)
            return torch.cat([posterior.mean[:, self.active], posterior.stddev[:, self.active]], 1)

        return in_batches(of_rows, x)

    @staticmethod
    def draw_latents(features, generator):
        """Draw latents from the posteriors in `features`, anew for every batch: (B, 2A) -> (B, A)."""
        mean, stddev = features.chunk(2, dim=1)
        return mean + stddev * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)

    def label_posterior(self, x):
        """Return q(y|z1), of batch shape (B,), at the mean of q(z1|x)."""
        return self.m2.label_posterior(self.features(x).chunk(2, dim=1)[0])

    def classify(self, x):
        """Return the most probable label under q(y|z1) at the mean of q(z1|x): (B, *X) -> (B,)."""
        return self.label_posterior(x).logits.argmax(-1)

    def sample(self, num, label=None, *, mean=False):
        """Draw (num, *X) from y to z2 to z1 to x, with `label` and `mean` as in `SemiSupervisedVAE.sample`."""
        y = self.m2.labels(num, label)
        z = self.m1.prior.sample((num,))
        z[:, self.active] = self.m2.sample(num, y)
        return sample_or_mean(self.m1.decoder(z), mean)
