"""The models: auto-encoder, VAE (M1), semi-supervised VAE (M2), M2 on M1's latents (M1+M2), and that with skips.

A model ties networks together and samples; what it maximises, and the papers [1] and [2], are in `vae.objectives`.
Shapes: B batch, K classes, X data dimensions, Z latents.
"""

import torch
from torch import nn
from torch.distributions import Categorical, MultivariateNormal

from vae import objectives
from vae.data import check_labels
from vae.marginalization import marginalize
from vae.networks import diagonal_normal


def check_batch(x, model):
    """Raise ValueError unless x is (B, X), B ≥ 1, in `model`'s precision, with values that its decoder supports."""
    x_dim, dtype = model.encoder.x_dim, next(model.parameters(), x).dtype
    if x.dim() != 2 or x.shape[1] != x_dim or not len(x):
        raise ValueError(f"x must have shape (batch, {x_dim}) and a row, not {tuple(x.shape)}; flatten images first")
    model.decoder.check(x)
    if x.dtype != dtype or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x is {x.dtype} and the model {dtype}, but both must be float32 or both float64: convert them by "
            "x.float() and model.float(); to compute in bfloat16 there is fit(bf16=True)"
        )


def _check_labels_of(y, num_images, num_classes):
    if y.shape not in ((num_images,), (num_classes, 1)):
        raise ValueError(f"y must have shape ({num_images},) or ({num_classes}, 1), not {tuple(y.shape)}")
    check_labels(y, num_classes)


def _draw(likelihood, mean):
    return likelihood.mean if mean else likelihood.sample()


class AutoEncoder(nn.Module):
    """Encode to a point, decode, compare: no prior, no posterior, hence no bound on log p(x)."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x):
        """Return the likelihood p(x|z) at the code z of each x (B, X)."""
        self.decoder.check(x)
        return self.decoder(self.encoder(x))

    def reconstruct(self, x):
        """Return the likelihood's mean at the code of each x: (B, X) -> (B, X)."""
        return self(x).mean

    def sample(self, num, codes, mean=False):
        """Draw (num, X) by decoding a Gaussian fitted to `codes` (N, Z): a stand-in for the prior that it lacks."""
        z = MultivariateNormal(codes.mean(0), codes.T.cov().reshape(codes.shape[1], -1)).sample((num,))
        return _draw(self.decoder(z), mean)


class VAE(nn.Module):
    """M1: p(z) = Normal(0, I), p(x|z) = `decoder`, q(z|x) = `encoder`   [1, section 3]."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("prior_mean", torch.zeros(encoder.z_dim))

    @property
    def prior(self):
        """p(z) = Normal(0, I), of event shape (Z,)."""
        return diagonal_normal(self.prior_mean, torch.ones_like(self.prior_mean))

    def forward(self, x):
        """Return q(z|x) and p(x|z) at one reparameterised draw z, for x of shape (B, X).

        Raises ValueError for a wrong shape or values outside the decoder's support.
        """
        check_batch(x, self)
        posterior = self.encoder(x)
        return posterior, self.decoder(posterior.rsample())

    def elbo(self, x):
        """Return a one-sample estimate of the evidence lower bound: (B, X) -> (B,)."""
        return objectives.elbo(x, *self(x), self.prior)

    def importance_weighted_bound(self, x, num_samples):
        """Return the bound from `num_samples` draws of z per example: (B, X) -> (B,)."""
        check_batch(x, self)
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples} must be at least 1")
        posterior = self.encoder(x)
        z = posterior.rsample((num_samples,))  # (S, B, Z)
        return objectives.importance_weighted_bound(x, z, posterior, self.decoder(z), self.prior)

    def reconstruct(self, x):
        """Return the likelihood's mean at the posterior's mean: (B, X) -> (B, X)."""
        check_batch(x, self)
        return self.decoder(self.encoder(x).mean).mean

    def sample(self, num, mean=False):
        """Draw (num, X) from p(x) by z ~ p(z), x ~ p(x|z), or return p(x|z)'s mean instead of the draw."""
        return _draw(self.decoder(self.prior.sample((num,))), mean)


def active_latents(vae, x):
    """Return the indices (A,) of the latents whose posterior mean has a standard deviation over x (N, X) above 0.1.

    The others stay at the prior and say nothing of x   [Burda et al. 2016, section 5.1, a variance of 0.01].
    """
    check_batch(x, vae)
    if len(x) < 2:
        raise ValueError("one example has no spread; give at least two")
    with torch.no_grad():
        return (vae.encoder(x).mean.std(0) > 0.1).nonzero().squeeze(1)


class SemiSupervisedVAE(nn.Module):
    """M2: p(y) uniform, p(z) = Normal(0, I), p(x|y, z) = `decoder`, q(z|x, y) = `encoder`, q(y|x) = `classifier`.

    [2, sections 2 and 3.1.2]. Labels y of shape (B,) give one to each image, and (K, 1) gives all K to each, at one
    784-wide product per image in the encoder. Encoder and decoder also take (L, B): L labels, others for each image.
    """

    def __init__(self, encoder, decoder, classifier):
        super().__init__()
        self.encoder, self.decoder, self.classifier = encoder, decoder, classifier
        self.register_buffer("prior_mean", torch.zeros(encoder.z_dim))
        self.register_buffer("label_logits", torch.zeros(classifier.num_classes))

    prior = VAE.prior

    @property
    def label_prior(self):
        """p(y), uniform over K labels."""
        return Categorical(logits=self.label_logits, validate_args=False)

    def noise(self, x):
        """Draw the noise that `elbo_given_noise` needs: x (B, X) -> (B, Z)."""
        return torch.randn(len(x), self.encoder.z_dim, device=x.device, dtype=x.dtype)

    def elbo_given_noise(self, x, y, noise):
        """Return −L(x, y) at z = mean + scale · noise, nothing checked: x (B, X), noise (B, Z), y (B,) -> (B,).

        Or y (K, 1), or L labels for each image, (L, B), -> (K, B) or (L, B).
        """
        posterior = self.encoder(x, y)
        z = posterior.mean + posterior.stddev * noise  # rsample, with the noise given: (B, Z) or (K, B, Z)
        return objectives.labeled_elbo(x, y, posterior, self.decoder(z, y), self.prior, self.label_prior)

    def labeled_elbo(self, x, y):
        """Return −L(x, y), a one-sample estimate: x (B, X), y (B,) -> (B,), or y (K, 1) -> (K, B).

        Raises ValueError for wrong shapes, labels out of range, or values outside the decoder's support.
        """
        check_batch(x, self)
        _check_labels_of(y, len(x), self.classifier.num_classes)
        return self.elbo_given_noise(x, y, self.noise(x))

    def unlabeled_elbo(self, x, marginalize=marginalize):
        """Return −U(x), summing over labels by `marginalize`: (B, X) -> (B,).

        The K labels of one image share their noise: unbiased, and what differs between labels is then the label alone.
        """
        check_batch(x, self)
        noise, label_posterior = self.noise(x), self.classifier(x)
        expected = marginalize(lambda y: self.elbo_given_noise(x, y, noise), label_posterior)
        return objectives.unlabeled_elbo(expected, label_posterior)

    def classify(self, x):
        """Return the most probable label under q(y|x): (B, X) -> (B,)."""
        check_batch(x, self)
        return self.classifier.classify(x)

    def reconstruct(self, x):
        """Return p(x|y, z)'s mean at the inferred label and the posterior's mean: (B, X) -> (B, X)."""
        y = self.classify(x)
        return self.decoder(self.encoder(x, y).mean, y).mean

    def sample(self, label, num, mean=False):
        """Draw (num, X) images of class `label`, or return p(x|y, z)'s mean instead of the draw."""
        y = torch.full((num,), label, device=self.prior_mean.device)
        return _draw(self.decoder(self.prior.sample((num,)), y), mean)


class StackedSemiSupervisedVAE(nn.Module):
    """M1+M2: p(x, z1, y, z2) = p(x|z1) p(z1|y, z2) p(y) p(z2): `m2` describes the latents z1 of `m1`, not pixels.

    [2, section 2.2]. z1 are the `active` latents, given by their indices (A,), which `active_latents` finds; the others
    keep M1's prior. The paper trains M1 first, then M2 on its `features`; the bounds here are for training both.
    """

    def __init__(self, m1, m2, active):
        super().__init__()
        self.m1, self.m2 = m1, m2
        self.register_buffer("active", active)

    def features(self, x):
        """Return mean and standard deviation of q(z1|x), side by side: (B, X) -> (B, 2A)."""
        check_batch(x, self.m1)
        with torch.no_grad():
            posterior = self.m1.encoder(x)
            return torch.cat([posterior.mean[:, self.active], posterior.stddev[:, self.active]], 1)

    def _encode(self, x):
        """Return q(z1|x) as one Normal for each latent, a draw of all latents, (B, Z), and its active part, (B, A)."""
        check_batch(x, self.m1)
        posterior = self.m1.encoder(x)
        z = posterior.rsample()
        return posterior.base_dist, z, z[:, self.active]

    def _elbo(self, x, elbo_of_latents):
        posterior, z, z1 = self._encode(x)
        return objectives.stacked_elbo(x, posterior, self.m1.decoder(z), self.active, elbo_of_latents(z1))

    def classifier(self, x):
        """Return q(y|z1) at a draw z1 ~ q(z1|x), of batch shape (B,)."""
        return self.m2.classifier(self.m1.encoder(x).rsample()[:, self.active])

    def labeled_elbo(self, x, y):
        """Return a one-sample estimate of the bound on log p(x, y): x (B, X), y (B,) -> (B,)."""
        return self._elbo(x, lambda z1: self.m2.labeled_elbo(z1, y))

    def unlabeled_elbo(self, x, marginalize=marginalize):
        """Return a one-sample estimate of the bound on log p(x), the label summed out: (B, X) -> (B,)."""
        return self._elbo(x, lambda z1: self.m2.unlabeled_elbo(z1, marginalize))

    @staticmethod
    def draw(features, generator):
        """Draw latents from the posteriors in `features`, anew for every batch: (B, 2A) -> (B, A)."""
        mean, stddev = features.chunk(2, dim=1)
        return mean + stddev * torch.randn(mean.shape, generator=generator, device=mean.device)

    def classify(self, x):
        """Return the most probable label under q(y|z1) at the mean of q(z1|x): (B, X) -> (B,)."""
        return self.m2.classify(self.features(x).chunk(2, dim=1)[0])


class SkipSemiSupervisedVAE(StackedSemiSupervisedVAE):
    """M1+M2 with skips: p(x, z1, y, z2) = p(x|y, z1) p(z1|y, z2) p(y) p(z2), and q(y|x) in place of q(y|z1).

    In M1+M2 all that label and image know of each other passes through a few noisy latents z1. Here they also meet
    directly, as in M2: M1's decoder takes the label, too, and `image_classifier` sees the image. `m2.classifier` serves
    only while `m2` is trained alone; no bound here uses it. A smaller relative of the skip deep generative model, with
    two stochastic layers and skip connections (Maaløe et al. 2016, Auxiliary Deep Generative Models, arXiv:1602.05473).
    Raises ValueError if M1's decoder takes no label, or the two classifiers tell different numbers of classes apart.
    """

    def __init__(self, m1, m2, active, image_classifier):
        super().__init__(m1, m2, active)
        if m1.decoder.network.label_column is None:
            raise ValueError("M1's decoder must take the label: give it num_classes")
        if image_classifier.num_classes != m2.classifier.num_classes:
            raise ValueError(
                f"{image_classifier.num_classes} classes of images, but M2 has {m2.classifier.num_classes}"
            )
        self.image_classifier = image_classifier

    def _bound(self, x):
        """Return y ↦ −L(x, y) at one draw of z1 and of the noise for z2, which all labels share: y (B,) -> (B,).

        Or y (K, 1), or L labels for each image, (L, B), -> (K, B) or (L, B).
        """
        posterior, z, z1 = self._encode(x)
        noise = self.m2.noise(z1)

        def bound(y):
            of_latents, likelihood = self.m2.elbo_given_noise(z1, y, noise), self.m1.decoder(z, y)
            return objectives.stacked_elbo(x, posterior, likelihood, self.active, of_latents)

        return bound

    def classifier(self, x):
        """Return q(y|x): (B, X) -> batch shape (B,)."""
        return self.image_classifier(x)

    def labeled_elbo(self, x, y):
        """Return a one-sample estimate of the bound on log p(x, y): y (B,) -> (B,), or y (K, 1) -> (K, B).

        Raises ValueError for wrong shapes, labels out of range, or values outside the decoder's support.
        """
        bound = self._bound(x)
        _check_labels_of(y, len(x), self.image_classifier.num_classes)
        return bound(y)

    def unlabeled_elbo(self, x, marginalize=marginalize):
        """Return a one-sample estimate of the bound on log p(x), the label summed out: (B, X) -> (B,).

        Raises ValueError for a wrong shape, or values outside the decoder's support.
        """
        bound, label_posterior = self._bound(x), self.image_classifier(x)
        return objectives.unlabeled_elbo(marginalize(bound, label_posterior), label_posterior)

    def classify(self, x):
        """Return the most probable label under q(y|x): (B, X) -> (B,). Raises ValueError as `unlabeled_elbo` does."""
        check_batch(x, self.m1)
        return self.image_classifier.classify(x)
