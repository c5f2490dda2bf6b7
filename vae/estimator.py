"""M2 as a scikit-learn classifier for your own rows; it steps aside where the few labels say that M2 does harm.

Rows without a label help where the classes are what varies most in the data, and do harm elsewhere. Nobody knows
before, so cross-validation on the labeled rows measures both a classifier of the labels alone and M2, which answers
only if it proves better. scikit-learn and joblib come with the extra `estimator`.
"""

import warnings
from dataclasses import replace
from functools import partial
from numbers import Integral
from threading import Lock

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch.nn.functional import cross_entropy

from vae.conv import ConvNet, DeconvNet
from vae.data import NO_LABEL, Batches, SemiSupervisedBatches, add_noise, as_is, binarize
from vae.evaluation import calibration_error, in_batches
from vae.gaussian import ColumnGaussianDecoder
from vae.models import check_label_prior
from vae.networks import BernoulliDecoder, ContinuousBernoulliDecoder, as_shape
from vae.recipes import M1Recipe, M2Recipe, build_m1, build_m2, train_m1, train_m2
from vae.rows import (
    check_range,
    check_rows,
    choose_likelihood,
    column_scaling,
    encode_labels,
    labeled_folds,
    pixel_range,
)
from vae.saving import load

LIKELIHOODS = {  # the decoder, and the transform of rows in training
    "Bernoulli": (BernoulliDecoder, binarize),
    "gray Bernoulli": (BernoulliDecoder, as_is),
    "continuous Bernoulli": (ContinuousBernoulliDecoder, as_is),
    "Gaussian": (ColumnGaussianDecoder, add_noise),
}
EPOCHS = 20  # in which the updates are made
LABELS, M2 = "labels alone", "M2"
RECIPES = {  # beside labels alone, once they are learned, encoder and decoder learn from all rows
    LABELS: M2Recipe(label_epochs=2, frozen_epochs=EPOCHS - 2, unfrozen_epochs=0),
    M2: M2Recipe(label_epochs=2, frozen_epochs=3, unfrozen_epochs=EPOCHS - 5),
}
FITS, FOLDS = Lock(), Lock()  # one at a time, where joblib takes threads: they share a random state


def _random_state_of_its_own(x):
    """Return a context that leaves PyTorch's generators as they were, on the CPU and where `x` is."""
    return torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else [])


def _measured(logits, y):
    """Return what logits (n, K) make of the classes y (n,), for `cv_results_`, at the temperature of least loss.

    Of 1 or more: where no held-out label is wrong the loss is least at 0, and probabilities would be far too sure.
    """
    log_losses = {t: cross_entropy(logits / t, y).item() for t in np.geomspace(0.5, 30, 41).clip(1).tolist()}
    temperature = min(log_losses, key=log_losses.get)
    return {
        "error": 100 * (logits.argmax(1) != y).double().mean().item(),
        "log_loss": log_losses[temperature],
        "calibration_error": calibration_error((logits / temperature).softmax(1), y),
        "temperature": temperature,
    }


class M2Classifier(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """The semi-supervised VAE M2 as a classifier, guarded: `predict`, and all that a generative model can say.

    Parameters
    ----------
    likelihood : {"auto", "Bernoulli", "gray Bernoulli", "continuous Bernoulli", "Gaussian"}
        p(x|y, z). By default a Bernoulli for tables of 0 and 1, and for images of nearly black and white pixels, which
        are drawn anew for each batch. For gray or color images a Bernoulli too, but of the values as they are, which
        is no density; a continuous one is. For other tables a Gaussian with a scale for each column, of standardized
        rows with noise of 0.5.
    hidden_dims : tuple of int or None
        Widths of all networks; by default (500, 500), for rows of fewer than 200 values (256, 256), and (128,) after
        the convolutions that images of more than 32 × 32 values get.
    z_dim : int or None
        Latents that hold the style; by default 50, and 3 for rows of fewer than 200 values.
    label_prior : array-like of K probabilities or None
        p(y), in the order of `classes_`, or by the index of a pandas Series; by default the smoothed frequency of the
        labels. Say the true shares where the same number of each class was labeled.
    updates : int or None
        Of M2, and of the M1 that it starts from where rows are images; rounded up to a multiple of 20. By default 25
        passes of the rows in batches of 200, at most 6,000, and at least 2,000 for a table, 3,000 for images of up to
        32 × 32 values, 1,000 for larger ones.
    cv : int or None
        Folds in which the guard measures M2 on held-out labels; with 3, tables take about four times as long, images
        three times. None for no guard.
    answers : {"M2", "labels alone"}
        The classifier to train if `cv` is None.
    n_jobs : int or None
        How many folds joblib trains at once, in processes; in threads, one after another.
    device : str
        Where to train, as of PyTorch: "cpu" or "cuda". Predictions are made on the CPU, in double precision.
    random_state : int, RandomState instance or None
        For the same numbers again, on the same number of threads; None takes a seed from NumPy's global state.
    verbose : bool
        Whether training prints.

    Attributes
    ----------
    classes_ : ndarray (K,)
        The classes, sorted.
    transduction_ : ndarray (N,)
        The labels of the training rows, those that were missing predicted.
    report_ : str
        What labels alone, and M2, get wrong on held-out labeled rows, and which of them answers.
    cv_results_ : dict
        The same in numbers, for both: `error` and `calibration_error` in %, `log_loss` in nats, `temperature`; empty
        where nothing is held out.
    chosen_ : str
        Which answers: "M2" if it gets at least two held-out labels fewer wrong, at a lower log loss, else "labels
        alone". With `cv=None` it is `answers`.
    temperature_ : float
        What its logits are divided by, as suits the held-out labels best; 1 where none are held out.
    likelihood_ : str
        The one that was taken.
    x_shape_ : tuple
        The shape of a row; an image's is (C, H, W).
    history_ : list of dict
        Loss (nats), updates and CPU seconds of each epoch of the last fit.
    m2_ : vae.models.SemiSupervisedVAE
        The trained model.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298. The stages of training are those of `vae.recipes`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> from vae.estimator import M2Classifier
    >>> X, y = load_wine(return_X_y=True)
    >>> few = np.where(np.arange(len(y)) % 10 == 0, y, -1)  # a tenth of the labels
    >>> model = M2Classifier(updates=200, hidden_dims=(32,), random_state=0).fit(X, few)
    >>> bool(model.score(X, y) > 0.85)
    True
    """

    def __init__(
        self,
        *,
        likelihood="auto",
        hidden_dims=None,
        z_dim=None,
        label_prior=None,
        updates=None,
        cv=3,
        answers="M2",
        n_jobs=None,
        device="cpu",
        random_state=None,
        verbose=False,
    ):
        self.likelihood = likelihood
        self.hidden_dims = hidden_dims
        self.z_dim = z_dim
        self.label_prior = label_prior
        self.updates = updates
        self.cv = cv
        self.answers = answers
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y):
        """Fit to rows X and labels y (N,), −1, None or NaN where there is none; returns itself.

        X is a table (N, D), or images (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4; of uint8 or floats.
        Raises ValueError, with what to do, for missing values or text in X, and for no labels or one class in y;
        FloatingPointError where training diverges.
        """
        if y is None:
            raise ValueError("M2Classifier requires y to be passed, but the target y is None")
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # an earlier fit's: this one may not come to its end
        X = check_rows(self, X, reset=True)
        self.classes_, codes = encode_labels(y)
        check_consistent_length(X, codes)
        self._fit_scaling(X)
        scaled = self._scaled(X)
        x, y = scaled.to(self.device, torch.get_default_dtype()), torch.from_numpy(codes).to(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with FITS, torch.enable_grad(), _random_state_of_its_own(x):
            self._fit(x, y, seed)
        most_probable = in_batches(self._probabilities, scaled).numpy().argmax(1)
        self.transduction_ = self.classes_[np.where(codes == NO_LABEL, most_probable, codes)]
        return self

    def _fit(self, x, y, seed):
        """Choose between labels alone and M2 by cross-validation, if there is any, and train."""
        self._check_settings()
        self.chosen_, self.cv_results_, self.temperature_ = LABELS if self.cv else self.answers, {}, 1.0
        guarded = self.cv and np.bincount(y[y != NO_LABEL].cpu()).max() > 1
        m1 = self._train_m1(x, seed) if x.ndim > 2 and (guarded or self.chosen_ == M2) else None
        if guarded:
            self._choose(x, y, m1, seed)
        elif self.cv:
            self.report_ = "labels alone answer: every class has one label, so none can be held out to compare with M2"
            warnings.warn(self.report_, stacklevel=3)
        else:
            self.report_ = f"{self.answers}: cv=None, so nothing was held out to compare it with"
        m2, self.history_ = self._train_m2(x, y, m1 if self.chosen_ == M2 else None, seed, RECIPES[self.chosen_])
        self.m2_ = m2.to("cpu", torch.float64)
        self._n_features_out = self.m2_.encoder.z_dim

    def _check_settings(self):
        """Raise ValueError for what cannot be, before anything is trained."""
        if self.answers not in RECIPES:
            raise ValueError(f"answers = {self.answers!r} must be one of {', '.join(map(repr, RECIPES))}")
        for name, least in (("updates", 1), ("z_dim", 1), ("cv", 2)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and value >= least):
                raise ValueError(f"{name} = {value!r} must be a whole number of at least {least}, or None")
        widths = [1] if self.hidden_dims is None else np.atleast_1d(np.array(self.hidden_dims, dtype=object))
        if not len(widths) or not all(isinstance(n, Integral) and n > 0 for n in widths):
            raise ValueError(f"hidden_dims = {self.hidden_dims!r} must hold widths of at least 1, or be None")
        if self.label_prior is not None:
            self._prior()

    def _prior(self):
        """Return the `label_prior` that was given, in the order of `classes_`: (K,)."""
        given = self.label_prior
        given = given.reindex(self.classes_) if hasattr(given, "reindex") else given  # of pandas, by its index
        prior = torch.tensor(np.asarray(given, dtype=float))
        check_label_prior(prior, len(self.classes_))
        return prior

    def _choose(self, x, y, m1, seed):
        """Measure both on held-out labels, choose one, report.

        To answer, M2 needs a lower log loss and at least two errors fewer: one is within its standard error.
        """
        folds = labeled_folds(y.cpu().numpy(), self.cv, seed)
        truth = torch.cat([y[rows] for _, rows in folds]).cpu()

        def measure(start, recipe):
            jobs = (delayed(self._held_out)(x, y, rows, start, seed, recipe) for _, rows in folds)
            return _measured(torch.cat(Parallel(self.n_jobs)(jobs)), truth)

        labels = measure(None, replace(RECIPES[LABELS], frozen_epochs=0))  # which do not change the classifier
        m2 = measure(m1, RECIPES[M2])
        self.cv_results_ = {LABELS: labels, M2: m2}
        harm = m2["error"] - labels["error"]
        fewer = round(-harm * len(truth) / 100)
        self.chosen_ = M2 if fewer > 1 and m2["log_loss"] < labels["log_loss"] else LABELS
        self.temperature_ = self.cv_results_[self.chosen_]["temperature"]
        self.report_ = self._report(len(truth))
        if harm > 0:
            warnings.warn(
                f"labels alone answer: M2 would have raised the error on held-out labels by {harm:.1f} points, "
                f"from {labels['error']:.1f} to {m2['error']:.1f} %",
                stacklevel=4,
            )

    def _report(self, num_rows):
        """Return the measurements as a small table."""
        lines = [f"{num_rows} labeled rows, each held out once:   wrong   log loss   calibration error"]
        for name, found in self.cv_results_.items():
            numbers = f"{found['error']:7.1f} %{found['log_loss']:11.3f}{found['calibration_error']:16.1f} %"
            lines.append(f"{name:40s}{numbers}{'   answers' if name == self.chosen_ else ''}")
        return "\n".join(lines)

    def _held_out(self, x, y, rows, m1, seed, recipe):
        """Return the logits (n, K) of `rows` (n,), whose labels training does not see."""
        hidden = y.clone()
        hidden[rows] = NO_LABEL
        with FOLDS, _random_state_of_its_own(x):
            m2, _ = self._train_m2(x, hidden, m1, seed, recipe)
            return in_batches(lambda held_out: m2.classifier(held_out).logits, x[rows]).cpu().double()

    def _is_large(self):
        """Return whether a row is an image for which an MLP would be slow, and see little."""
        return len(self.x_shape_) == 3 and np.prod(self.x_shape_) > 32 * 32

    def _networks(self):
        """Return sizes, likelihood and networks, as `build_m1` and `build_m2` take them."""
        hidden_dims, z_dim = ((256, 256), 3) if np.prod(self.x_shape_) < 200 else ((500, 500), 50)
        networks = {}
        if self._is_large():
            hidden_dims = (128,)
            networks["network"] = partial(ConvNet, channels=(16, 32, 64))
            networks["decoder_network"] = partial(DeconvNet, channels=(64, 32, 16))
        return networks | {
            "hidden_dims": hidden_dims if self.hidden_dims is None else as_shape(self.hidden_dims),
            "z_dim": int(self.z_dim or z_dim),
            "decoder": LIKELIHOODS[self.likelihood_][0],
        }

    def _batches(self, kind, x, *others, seed):
        """Return batches of x, of which `EPOCHS` epochs make all updates."""
        transform = LIKELIHOODS[self.likelihood_][1]
        least = 2000 if x.ndim == 2 else 1000 if self._is_large() else 3000
        num_batches = -(-(self.updates or min(6000, max(least, 25 * len(x) // 200))) // EPOCHS)
        return kind(x, *others, torch.Generator(x.device).manual_seed(seed), transform, num_batches)

    def _train_m1(self, x, seed):
        """Return an M1 of all rows (N, *X)."""
        torch.manual_seed(seed)
        batches = self._batches(Batches, x, min(200, len(x)), seed=seed)
        m1 = build_m1(self.x_shape_, **self._networks()).to(x.device)
        train_m1(m1, batches, M1Recipe(epochs=EPOCHS), verbose=self.verbose)
        return m1

    def _train_m2(self, x, y, m1, seed, recipe):
        """Return an M2 of rows x with labels y, which starts from M1's encoder if there is one; and its history."""
        torch.manual_seed(seed)
        counts = torch.bincount(y[y != NO_LABEL], minlength=len(self.classes_)).cpu()
        sizes = min(100, int(counts.sum())), min(200, len(y) - int(counts.sum()))
        batches = self._batches(SemiSupervisedBatches, x, y, *sizes, seed=seed)
        m2 = build_m2(
            self.x_shape_,
            len(self.classes_),
            **self._networks(),
            m1=m1,
            label_prior=(counts + 1) / (counts + 1).sum() if self.label_prior is None else self._prior(),
        ).to(x.device)
        return m2, train_m2(m2, batches, recipe, verbose=self.verbose)

    def _fit_scaling(self, X):
        """Choose the likelihood; and by what rows are shifted and scaled for it."""
        self.likelihood_ = choose_likelihood(X) if self.likelihood == "auto" else self.likelihood
        if self.likelihood_ not in LIKELIHOODS:
            raise ValueError(f"likelihood = {self.likelihood!r} must be one of auto, {', '.join(LIKELIHOODS)}")
        if self.likelihood_ == "Gaussian":
            self.shift_, self.scale_ = column_scaling(X)
        else:
            low, high = pixel_range(X)
            self.shift_, self.scale_ = np.full_like(X[0], low), np.full_like(X[0], high - low)

    def _scaled(self, X):
        """Return X (N, *x_shape_) as M2 models it, in float64; new pixels beyond the range of the old ones are cut."""
        x = torch.from_numpy((X - self.shift_) / self.scale_)
        return x if self.likelihood_ == "Gaussian" else x.clamp(0, 1)

    def _of_rows(self, function, X):
        """Return `function(rows)` of all scaled rows, an array (N, …)."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if self.likelihood_ != "Gaussian":
            check_range(X, self.shift_.flat[0], self.scale_.flat[0])
        return in_batches(lambda rows: function(self._scaled(X[rows.numpy()])), torch.arange(len(X))).numpy()

    def predict_proba(self, X):
        """Return q(y|x), its logits divided by `temperature_`, in the order of `classes_`: (N, K)."""
        return self._of_rows(self._probabilities, X)

    def _probabilities(self, x):
        return (self.m2_.classifier(x).logits / self.temperature_).softmax(1)

    def predict(self, X):
        """Return the most probable class of each row: (N,)."""
        most_probable = self.predict_proba(X).argmax(1)
        return self.classes_[most_probable]

    def transform(self, X):
        """Return the style: the mean of q(z|x, y) at the most probable class, (N, Z)."""
        return self._of_rows(lambda x: self.m2_.encoder(x, self.m2_.classify(x)).mean, X)

    def score_samples(self, X):
        """Return a lower bound on log p(x) of each row, in nats, up to a constant: low where a row is like no other.

        Of the scaled row, in the mean over ten draws of z, the same for all rows; gray pixels under a Bernoulli have
        their expected value (see `vae.networks`), and a Gaussian's density is that of rows with the noise of training.
        −∞ for what is too far away to compute.
        """
        check_is_fitted(self)
        noise = torch.from_numpy(np.random.RandomState(0).standard_normal((10, self.m2_.encoder.z_dim)))

        def bound(x):
            """Return the mean bound of scaled rows x (B, *x_shape_): (B,)."""
            draws = [self.m2_.unlabeled_elbo(x, noise=n.expand(len(x), -1)) for n in noise]
            return torch.stack(draws).mean(0).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

        return self._of_rows(bound, X)

    def sample(self, num=1, label=None, *, mean=False):
        """Draw `num` rows of the class `label`, or of all classes by their prior: (num, *x_shape_), in X's units.

        Images have their channels first. `mean` gives p(x|y, z)'s mean instead of a draw; a Gaussian's draw has the
        noise of training. A gray Bernoulli gives the mean in any case, for its draws would be black or white. An int as
        `random_state` draws the same rows again.
        """
        check_is_fitted(self)
        if label is not None and (np.ndim(label) or label not in self.classes_):
            raise ValueError(f"label = {label!r} must be one of {self.classes_.tolist()}")
        number = None if label is None else int(np.flatnonzero(self.classes_ == label)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
            rows = self.m2_.sample(num, number, mean=mean or self.likelihood_ == "gray Bernoulli")
        return rows.numpy() * self.scale_ + self.shift_

    def save(self, path):
        """Write the fitted classifier to `path`, a safetensors file, atomically: nothing in it is ever executed.

        A generator as `random_state` is not kept.
        """
        check_is_fitted(self)
        kept = {name: value for name, value in vars(self).items() if name != "m2_"} | {"device": str(self.device)}
        if not isinstance(self.random_state, Integral):
            kept["random_state"] = None  # a file keeps no generator
        if self.label_prior is not None:
            kept["label_prior"] = self._prior().tolist()
        self.m2_.save(path, torch.float32, estimator=kept)  # in which it was trained, by PyTorch's default

    @classmethod
    def load(cls, path):
        """Return the classifier that `save` wrote to `path`. ValueError for another file."""
        m2 = load(path)
        if "estimator" not in m2.about:
            raise ValueError(f"{path} holds no M2Classifier; vae.load reads models")
        self = cls()
        self.__dict__ |= m2.about["estimator"] | {"m2_": m2.double()}
        for name in ("classes_", "transduction_", "shift_", "scale_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(self, name, np.array(getattr(self, name)))
        self.x_shape_ = tuple(self.x_shape_)
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, "m2_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
