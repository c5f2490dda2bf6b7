"""The models: auto-encoder, VAE (M1), and semi-supervised VAE (M2). M2 on M1's latents is in `vae.stacked`.

A model ties networks together, bounds and samples; what it maximizes, and the papers [1] and [2], are in
`vae.objectives`. Shapes: B batch, K classes, X one example's shape, Z latents.
"""

import torch
from torch.distributions import Categorical, MultivariateNormal

from vae import objectives
from vae.data import check_labels
from vae.distributions import diagonal_normal
from vae.marginalization import marginalize
from vae.saving import Module


def check_batch(x, model):
    """Raise ValueError unless x is (B, *X), B ≥ 1, in `model`'s precision, with values that its decoder supports."""
    if not torch.is_tensor(x):
        raise ValueError(f"x must be a tensor, as of torch.from_numpy(x), not {type(x).__name__}")
    shape, dtype = model.encoder.x_shape, model.prior_mean.dtype
    if x.shape[1:] != shape or not len(x):
        expected = ", ".join(map(str, ("batch", *shape)))
        raise ValueError(f"x must have shape ({expected}) and a row, not {tuple(x.shape)}")
    model.decoder.check(x)
    if x.dtype != dtype or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x is {x.dtype} and the model {dtype}, but both must be float32 or both float64: convert them by "
            "x.float() and model.float(); to compute in bfloat16 there is Recipe(bf16=True)"
        )


def check_labels_or_all(y, num_images, num_classes):
    """Raise ValueError unless y is a label for each image, (B,), or all K in order, (K, 1)."""
    column = torch.is_tensor(y) and y.dtype == torch.long and y.shape == (num_classes, 1)
    if not (column and y.flatten().tolist() == list(range(num_classes))):
        check_labels(y, num_images, num_classes)


def sample_or_mean(likelihood, mean):
    """Return a draw from `likelihood`, or its mean, without gradient."""
    return likelihood.mean.detach() if mean else likelihood.sample()


class AutoEncoder(Module):
    """Encode to a point, decode, compare: no prior, no posterior, hence no bound on log p(x)."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder, self.codes = encoder, decoder, None

    def forward(self, x):
        """Return the likelihood p(x|z) at the code z of each x (B, *X)."""
        self.decoder.check(x)
        return self.decoder(self.encoder(x))

    @torch.no_grad()
    def reconstruct(self, x):
        """Return the likelihood's mean at the code of each x: (B, *X) -> (B, *X)."""
        return self(x).mean

    @torch.no_grad()
    def fit_codes(self, x):
        """Fit a Gaussian to the codes of x (B, *X), as the prior that `sample` lacks; a saved file does not keep it."""
        codes = self.encoder(x)  # (B, Z)
        self.codes = MultivariateNormal(codes.mean(0), codes.T.cov().reshape(codes.shape[1], -1))

    def sample(self, num, *, mean=False):
        """Draw (num, *X) by decoding codes from the Gaussian of `fit_codes`; ValueError before there is one."""
        if self.codes is None:
            raise ValueError("an auto-encoder has no prior to sample from; give it training data by fit_codes first")
        return sample_or_mean(self.decoder(self.codes.sample((num,))), mean)


class _LatentVariableModel(Module):
    """What M1 and M2 share: an encoder, a decoder, and the prior p(z) = Normal(0, I) between them."""

    def __init__(self, encoder, decoder):
        super().__init__()
        if getattr(decoder, "x_shape", encoder.x_shape) != encoder.x_shape:
            raise ValueError(f"the encoder is of x {encoder.x_shape}, but the decoder of {decoder.x_shape}")
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("prior_mean", torch.zeros(encoder.z_dim))

    @property
    def prior(self):
        """p(z) = Normal(0, I), of event shape (Z,)."""
        return diagonal_normal(self.prior_mean, torch.ones_like(self.prior_mean))


class VAE(_LatentVariableModel):
    """M1: p(z) = Normal(0, I), p(x|z) = `decoder`, q(z|x) = `encoder`   [1, section 3]."""

    def forward(self, x):
        """Return q(z|x) and p(x|z) at one reparameterized draw z, for x of shape (B, *X).

        Raises ValueError for a wrong shape or values outside the decoder's support.
        """
        check_batch(x, self)
        posterior = self.encoder(x)
        return posterior, self.decoder(posterior.rsample())

    def elbo(self, x):
        """Return a one-sample estimate of the evidence lower bound: (B, *X) -> (B,)."""
        return objectives.elbo(x, *self(x), self.prior)

    def importance_weighted_bound(self, x, num_samples, objective=objectives.importance_weighted_bound):
        """Return the bound from `num_samples` draws of z per example: (B, *X) -> (B,).

        `objective` may be `objectives.doubly_reparameterized_bound`, to train by.
        """
        check_batch(x, self)
        posterior = self.encoder(x)
        z = posterior.rsample((num_samples,))  # (S, B, Z)
        return objective(x, z, posterior, self.decoder(z), self.prior)

    @torch.no_grad()
    def reconstruct(self, x):
        """Return the likelihood's mean at the posterior's mean: (B, *X) -> (B, *X)."""
        check_batch(x, self)
        return self.decoder(self.encoder(x).mean).mean

    def sample(self, num, *, mean=False):
        """Draw (num, *X) from p(x) by z ~ p(z), x ~ p(x|z), or return p(x|z)'s mean instead of the draw."""
        return sample_or_mean(self.decoder(self.prior.sample((num,))), mean)


def check_label_prior(probs, num_classes):
    """Raise ValueError unless `probs`, a tensor, holds so many probabilities above 0; they need not sum to 1."""
    if probs.shape != (num_classes,) or not ((probs > 0) & probs.isfinite()).all():
        raise ValueError(f"label_prior must hold {num_classes} probabilities above 0, not {probs.tolist()}")


class ConditionalVAE(_LatentVariableModel):
    """M2 for images with a label: p(y), p(z) = Normal(0, I), p(x|y, z) = `decoder`, q(z|x, y) = `encoder`.

    [2, section 2]. p(y) is uniform, or `label_prior`, K probabilities; ValueError for another number of them. Labels
    and the shapes that they lead to are those of `vae.networks`.
    """

    def __init__(self, encoder, decoder, num_classes, label_prior=None):
        super().__init__(encoder, decoder)
        uniform = torch.full((num_classes,), 1 / num_classes)
        probs = uniform if label_prior is None else torch.as_tensor(label_prior, dtype=uniform.dtype)
        check_label_prior(probs, num_classes)
        self.num_classes = num_classes
        self.register_buffer("label_logits", (probs / probs.max()).log())

    @property
    def label_prior(self):
        """p(y), a Categorical over K labels."""
        return Categorical(logits=self.label_logits, validate_args=False)

    def noise(self, x):
        """Draw the noise that `elbo_given_noise` needs: x (B, *X) -> (B, Z)."""
        return torch.randn(len(x), self.encoder.z_dim, device=x.device, dtype=x.dtype)

    def elbo_given_noise(self, x, y, noise):
        """Return −L(x, y) at z = mean + scale · noise, for any labels, nothing checked: x (B, *X), noise (B, Z)."""
        posterior = self.encoder(x, y)
        z = posterior.mean + posterior.stddev * noise  # rsample, with the noise given: (B, Z) or (K, B, Z)
        return objectives.labeled_elbo(x, y, posterior, self.decoder(z, y), self.prior, self.label_prior)

    def labeled_elbo(self, x, y):
        """Return −L(x, y), a one-sample estimate: x (B, *X), y (B,) -> (B,), or for all labels (K, 1) -> (K, B).

        Raises ValueError for wrong shapes, labels out of range, or values outside the decoder's support.
        """
        check_batch(x, self)
        check_labels_or_all(y, len(x), self.num_classes)
        return self.elbo_given_noise(x, y, self.noise(x))

    def labels(self, num, label):
        """Return `num` labels (num,): all of them `label`, one each if it holds `num`, or drawn from p(y) if None."""
        if label is None:
            return self.label_prior.sample((num,))
        y = torch.as_tensor(label, device=self.prior_mean.device)
        y = y if y.dim() else torch.full((num,), y.item(), device=y.device)
        check_labels(y, num, self.num_classes)
        return y

    def sample(self, num, label=None, *, mean=False):
        """Draw (num, *X) by z ~ p(z), x ~ p(x|y, z), or return p(x|y, z)'s mean instead of the draw.

        `label` is a number, `num` of them, or None: y ~ p(y). Raises ValueError for one out of range.
        """
        y = self.labels(num, label)
        return sample_or_mean(self.decoder(self.prior.sample((num,)), y), mean)


class SemiSupervisedVAE(ConditionalVAE):
    """M2: p(y), p(z) = Normal(0, I), p(x|y, z) = `decoder`, q(z|x, y) = `encoder`, q(y|x) = `classifier`.

    [2, sections 2 and 3.1.2]; `label_prior` as in `ConditionalVAE`.
    """

    def __init__(self, encoder, decoder, classifier, label_prior=None):
        super().__init__(encoder, decoder, classifier.num_classes, label_prior)
        self.classifier = classifier

    def label_posterior(self, x):
        """Return q(y|x), a Categorical over K labels: (B, *X) -> batch shape (B,)."""
        check_batch(x, self)
        return self.classifier(x)

    def unlabeled_elbo(self, x, marginalize=marginalize, noise=None):
        """Return −U(x), summing over labels by `marginalize`: (B, *X) -> (B,).

        The K labels of one image share their noise, drawn unless it is given, (B, Z): unbiased, and what differs
        between labels is then the label alone.
        """
        check_batch(x, self)
        noise = self.noise(x) if noise is None else noise
        label_posterior = self.classifier(x)
        expected = marginalize(lambda y: self.elbo_given_noise(x, y, noise), label_posterior)
        return objectives.unlabeled_elbo(expected, label_posterior)

    def classify(self, x):
        """Return the most probable label under q(y|x): (B, *X) -> (B,)."""
        return self.label_posterior(x).logits.argmax(-1)

    @torch.no_grad()
    def reconstruct(self, x):
        """Return p(x|y, z)'s mean at the inferred label and the posterior's mean: (B, *X) -> (B, *X)."""
        y = self.classify(x)
        return self.decoder(self.encoder(x, y).mean, y).mean
