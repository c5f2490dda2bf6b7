"""M1+M2: M2 on M1's latents, as the paper [2] draws it, and with skips. [2] is in `vae.objectives`.

Shapes: B batch, K classes, X one image's shape, Z latents of M1, A of them active.
"""

import torch

from vae import objectives
from vae.evaluation import in_batches
from vae.marginalization import marginalize
from vae.models import check_batch, check_labels_or_all, draw
from vae.saving import Module


class _OnM1(Module):
    """`m2` describes the latents z1 of `m1`, those with the indices `active` (A,); the others keep M1's prior."""

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
    def draw(features, generator):
        """Draw latents from the posteriors in `features`, anew for every batch: (B, 2A) -> (B, A)."""
        mean, stddev = features.chunk(2, dim=1)
        return mean + stddev * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)

    def encode(self, x):
        """Return q(z1|x) as one Normal for each latent, a draw of all latents, (B, Z), and its active part, (B, A)."""
        check_batch(x, self.m1)
        posterior = self.m1.encoder(x)
        z = posterior.rsample()
        return posterior.base_dist, z, z[:, self.active]

    def sample(self, num, label=None, *, mean=False):
        """Draw (num, *X) from y to z2 to z1 to x; with `mean`, the last step returns its mean instead of the draw.

        `label` is a number, `num` of them, or None: y ~ p(y). Raises ValueError for one out of range.
        """
        y = self.m2.labels(num, label)
        z = self.m1.prior.sample((num,))
        z[:, self.active] = self.m2.sample(num, y)
        return draw(self.decode(z, y), mean)


class StackedSemiSupervisedVAE(_OnM1):
    """M1+M2: p(x, z1, y, z2) = p(x|z1) p(z1|y, z2) p(y) p(z2)   [2, section 2].

    `m1` is a VAE of images, `m2` a SemiSupervisedVAE of its `active` latents, which `vae.evaluation` finds. The paper
    trains M1 first, then M2 on its `features`; the bounds here are for training both.
    """

    def decode(self, z, y):
        """Return p(x|z1): z (B, Z) -> batch shape (B,). It does not depend on y."""
        return self.m1.decoder(z)

    def _bound(self, x, bound_of_latents):
        posterior, z, z1 = self.encode(x)
        return objectives.stacked_elbo(x, posterior, self.m1.decoder(z), self.active, bound_of_latents(z1))

    def label_posterior(self, x):
        """Return q(y|z1), of batch shape (B,), at a draw z1 ~ q(z1|x) in training, at its mean in evaluation."""
        check_batch(x, self.m1)
        posterior = self.m1.encoder(x)
        z = posterior.rsample() if self.training else posterior.mean
        return self.m2.classifier(z[:, self.active])

    def classify(self, x):
        """Return the most probable label under q(y|z1) at the mean of q(z1|x): (B, *X) -> (B,)."""
        return self.m2.classify(self.features(x).chunk(2, dim=1)[0])

    def labeled_elbo(self, x, y):
        """Return a one-sample estimate of the bound on log p(x, y): y (B,) -> (B,), or (K, 1) -> (K, B)."""
        return self._bound(x, lambda z1: self.m2.labeled_elbo(z1, y))

    def unlabeled_elbo(self, x, marginalize=marginalize):
        """Return a one-sample estimate of the bound on log p(x), the label summed out: (B, *X) -> (B,)."""
        return self._bound(x, lambda z1: self.m2.unlabeled_elbo(z1, marginalize))


class SkipSemiSupervisedVAE(_OnM1):
    """M1+M2 with skips: p(x, z1, y, z2) = p(x|y, z1) p(z1|y, z2) p(y) p(z2), and q(y|x) in place of q(y|z1).

    In M1+M2 all that label and image know of each other passes through a few noisy latents z1. Here they also meet
    directly, as in M2: M1's decoder takes the label, too, and `classifier` sees the image; `m2` is a ConditionalVAE. A
    smaller relative of the skip deep generative model, with two stochastic layers and skip connections (Maaløe et al.
    2016, Auxiliary Deep Generative Models, arXiv:1602.05473). Raises ValueError if M1's decoder takes no label, or
    `m2` and the classifier know different numbers of classes.
    """

    def __init__(self, m1, m2, active, classifier):
        super().__init__(m1, m2, active)
        if m1.decoder.network.label_embedding is None:
            raise ValueError("M1's decoder must take the label: give it num_classes")
        if classifier.num_classes != m2.num_classes:
            raise ValueError(f"{classifier.num_classes} classes of images, but M2 has {m2.num_classes}")
        self.classifier = classifier

    def decode(self, z, y):
        """Return p(x|y, z1): z (B, Z) and y (B,), (K, 1) or (L, B) -> batch shape (B,), (K, B) or (L, B)."""
        return self.m1.decoder(z, y)

    def _bound(self, x):
        """Return y ↦ −L(x, y) at one draw of z1 and of the noise for z2, which all labels share: y (B,) -> (B,).

        Or y (K, 1), or L labels for each image, (L, B), -> (K, B) or (L, B).
        """
        posterior, z, z1 = self.encode(x)
        noise = self.m2.noise(z1)

        def bound(y):
            of_latents = self.m2.elbo_given_noise(z1, y, noise)
            return objectives.stacked_elbo(x, posterior, self.decode(z, y), self.active, of_latents)

        return bound

    def label_posterior(self, x):
        """Return q(y|x), a Categorical over K labels: (B, *X) -> batch shape (B,)."""
        check_batch(x, self.m1)
        return self.classifier(x)

    def classify(self, x):
        """Return the most probable label under q(y|x): (B, *X) -> (B,)."""
        return self.label_posterior(x).logits.argmax(-1)

    def labeled_elbo(self, x, y):
        """Return a one-sample estimate of the bound on log p(x, y): y (B,) -> (B,), or y (K, 1) -> (K, B).

        Raises ValueError for wrong shapes, labels out of range, or values outside the decoder's support.
        """
        bound = self._bound(x)
        check_labels_or_all(y, len(x), self.num_classes)
        return bound(y)

    def unlabeled_elbo(self, x, marginalize=marginalize):
        """Return a one-sample estimate of the bound on log p(x), the label summed out: (B, *X) -> (B,)."""
        bound, label_posterior = self._bound(x), self.classifier(x)
        return objectives.unlabeled_elbo(marginalize(bound, label_posterior), label_posterior)
