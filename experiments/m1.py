"""The runs of M1, one row each: architecture, decoder and training in one frozen dataclass, and what is measured."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from experiments import SMOKE, UserError
from experiments.data import load_data
from experiments.runner import MODEL, Job, load_result, on_this_machine, plain, shortened, with_recipe
from vae.data import Batches, as_is, binarize, dequantize
from vae.datasets import two_gaussians
from vae.evaluation import (
    active_latents,
    elbo_terms,
    evaluate_mean,
    in_batches,
    log_likelihood,
    mean_and_standard_error,
)
from vae.gaussian import DiagonalGaussianDecoder, GaussianDecoder, OptimalGaussianDecoder, SharedGaussianDecoder
from vae.networks import MLP, BernoulliDecoder, ContinuousBernoulliDecoder
from vae.recipes import M1Recipe, build_m1, train_m1
from vae.saving import load

DECODERS = {
    "Bernoulli": BernoulliDecoder,
    "continuous Bernoulli": ContinuousBernoulliDecoder,
    "Gaussian": GaussianDecoder,
    "diagonal Gaussian": DiagonalGaussianDecoder,
    "shared Gaussian": SharedGaussianDecoder,
    "optimal Gaussian": OptimalGaussianDecoder,
}


NETWORKS = {"ReLU": MLP, "SiLU": partial(MLP, activation=nn.SiLU), "softplus": partial(MLP, activation=nn.Softplus)}
TOY = "two Gaussians"
TRANSFORMS = {"binarize": binarize, "dequantize": dequantize, "none": as_is}
# The scale of a pixel: at least that of the noise which dequantizes a gray level, at most that of a coin in [0, 1].
PIXEL_LIMITS = (1 / (256 * 12**0.5), 0.5)


@dataclass(frozen=True)
class M1Config:
    """A VAE and its training. `transform` is what batches pass through, one of TRANSFORMS; `decoder` of DECODERS."""

    z_dim: int = 10
    hidden_dims: tuple = (500, 500)
    activation: str = "ReLU"  # one of NETWORKS
    decoder: str = "Bernoulli"
    decoder_options: dict = field(default_factory=dict)
    transform: str = "binarize"
    batch_size: int = 200
    recipe: M1Recipe = M1Recipe()
    seed: int = 0

    def build(self, x_shape):
        """Return the untrained VAE."""
        decoder = partial(DECODERS[self.decoder], **self.decoder_options)
        return build_m1(x_shape, self.z_dim, self.hidden_dims, decoder, NETWORKS[self.activation])

    def train(self, rows, folder, start=None, evaluate=lambda vae: {}):
        """Return the VAE trained on `rows` (N, *X), from the parameters of `start` if given, and its history.

        `folder` is where it resumes from, or finds it finished. Seed the global generator before.
        """
        vae = self.build(rows.shape[1:]).to(rows.device)
        if start:
            vae.load_state_dict(start.state_dict())
        generator = torch.Generator(rows.device).manual_seed(self.seed)
        batches = Batches(rows, self.batch_size, generator, TRANSFORMS[self.transform])
        options = {"folder": folder, "evaluate": lambda: evaluate(vae), "strict": True}
        return vae, train_m1(vae, batches, on_this_machine(self.recipe), **options)


@dataclass(frozen=True)
class M1Run(M1Config):
    """A VAE, the data of its own, and how many draws and examples log p(x) is estimated from."""

    data: str = "mnist"  # one of experiments.data.LOADERS, or TOY
    start: str | None = None  # the run that it goes on from
    samples: int = 1000
    examples: int = 1000

    def smoke(self):
        """Return the run with one epoch of each stage and few samples."""
        return replace(self, recipe=shortened(self.recipe), samples=20, examples=50)


DEEP = M1Config(
    z_dim=50,
    activation="SiLU",
    batch_size=250,
    recipe=M1Recipe(warm_up_epochs=20, epochs=200, weight_prior=1, bf16=True),
)
_DEEP = M1Run(**vars(with_recipe(DEEP, epochs=300)), samples=2000, examples=10_000)
_IWAE = M1Recipe(epochs=0, iwae_epochs=15, iwae_samples=20, lr=1e-3, weight_prior=1, bf16=True)
_GRAY = M1Run(hidden_dims=(200, 200), transform="dequantize", recipe=M1Recipe(epochs=4), samples=100)
_TOY = M1Run(
    data=TOY,
    transform="none",
    z_dim=1,
    hidden_dims=(64, 64),
    decoder="Gaussian",
    batch_size=100,
    recipe=M1Recipe(lr=1e-2),
    samples=500,
    examples=20_000,
)
LATENTS = (3, 5, 10, 20, 200)  # in figure 2 of the paper
VARIANCES = {  # where a decoder of gray images gets its variances from
    "undequantized": replace(_GRAY, decoder="diagonal Gaussian", transform="none"),
    "free": replace(_GRAY, decoder="diagonal Gaussian"),
    "limited": replace(_GRAY, decoder="diagonal Gaussian", decoder_options={"scale_limits": PIXEL_LIMITS}),
    "global": replace(_GRAY, decoder="shared Gaussian"),
    "optimal": replace(_GRAY, decoder="optimal Gaussian"),
    "fixed": replace(_GRAY, decoder="shared Gaussian", decoder_options={"fixed_scale": 1.0}),
    "continuous": replace(_GRAY, decoder="continuous Bernoulli"),
}


def _seeds(num, run):
    return [replace(run, seed=seed) for seed in range(num)]


def _name(group, run):
    return group if len(GROUPS[group]) == 1 else f"{group}-{run.seed}"


GROUPS = {  # settings were chosen on the validation images
    "mnist-50": _seeds(3, _DEEP),
    "mnist-50-iwae": [replace(run, start=f"mnist-50-{run.seed}", recipe=_IWAE) for run in _seeds(3, _DEEP)],
    **{f"latents-{n}": [M1Run(z_dim=n, hidden_dims=(500,), recipe=M1Recipe(epochs=24))] for n in LATENTS},
    **{f"variance-{name}": _seeds(20 if name == "optimal" else 5, run) for name, run in VARIANCES.items()},
    "toy-pixel": _seeds(10, replace(_TOY, decoder="diagonal Gaussian")),
    "toy-example": _seeds(20, _TOY),
    "toy-iwae": _seeds(5, replace(_TOY, recipe=M1Recipe(epochs=0, iwae_epochs=100, iwae_samples=5, lr=1e-2))),
}
RUNS = {_name(group, run): run for group, runs in GROUPS.items() for run in runs}


def runs_of(name):
    """Return the names of the runs that `name` stands for: itself, a group's, or several groups' such as toy.

    Raises UserError if there is none.
    """
    if name in RUNS:
        return [name]
    groups = [name] if name in GROUPS else [group for group in GROUPS if group.startswith(f"{name}-")]
    if not groups:
        raise UserError(f"no run is called {name!r}; there are {', '.join(GROUPS)}")
    return [_name(group, run) for group in groups for run in GROUPS[group]]


def jobs(names):
    """Return the jobs of these runs; in a smoke run, short ones."""
    configs = {name: RUNS[name].smoke() if SMOKE else RUNS[name] for name in names}
    return [Job(f"m1/{name}", config, partial(measure, config)) for name, config in configs.items()]


def measure(config, folder):
    """Return bounds and log-likelihoods in nats, on the test data, and the trained VAE, or None if it diverged."""
    start = _started(config.start, folder) if config.start else None
    *_, test, truth = data = _data(config)
    try:
        vae, history = _train(config, data, folder, start)
    except FloatingPointError as error:
        vae, history, result = None, [], {"diverged": str(error)}
    else:
        result = {"diverged": None} | _measured(vae, test, config, truth)
    return {
        "data": config.data,
        "seed": config.seed,
        "bf16": on_this_machine(config.recipe).bf16,
        **result,
        "updates": sum(epoch["updates"] for epoch in history),
        "cpu_minutes": round(sum(epoch["cpu_seconds"] for epoch in history) / 60, 2),
        "curve": [[round(epoch[key], 2) for key in ("loss", "valid_elbo", "test_elbo")] for epoch in history],
        "data_checksum": None if truth else load_data(config.data).checksum,
    }, vae


def _data(config):
    """Return training rows, validation rows, test rows, and the density that they are from, if it is known.

    Seeds the global generator.
    """
    torch.manual_seed(config.seed)
    if config.data == TOY:
        density = two_gaussians()
        return density.sample((5000,)), density.sample((5000,)), density.sample((20_000,)), density
    data, transform = load_data(config.data), TRANSFORMS[config.transform]
    valid, test = (
        transform(x, torch.Generator().manual_seed(n)) for n, x in enumerate((data.valid_images, data.test_images))
    )
    return data.train_images, valid, test, None


def _train(config, data, folder, start=None):
    """Return the VAE trained on `data`, and its history, with the bounds after each epoch, which draw noise, too."""
    rows, valid, test, _ = data

    def bounds(vae):
        return {"valid_elbo": evaluate_mean(vae.elbo, valid), "test_elbo": evaluate_mean(vae.elbo, test)}

    return config.train(rows, folder, start, bounds)


def _started(name, folder):
    """Return the VAE of the run `name`: what it left beside `folder`, or the same, trained now in a folder below."""
    [job] = jobs([name])
    left = folder.parent / name / MODEL
    if left.exists() and (vae := load(left)).about["settings"] == plain(job.config):
        return vae
    return _train(job.config, _data(job.config), folder / "start")[0]


def _measured(vae, test, config, truth):
    """Return bounds and estimates; log p(x), which takes longer, is of fewer rows than the bound, evenly spread."""
    rows = test[:: max(1, len(test) // config.examples)]
    mean, standard_error = mean_and_standard_error(
        in_batches(lambda x: log_likelihood(vae, x, config.samples), rows, batch_size=20)
    )
    terms = elbo_terms(vae, test[:10_000])
    return {
        "test_elbo": terms["elbo"],
        "test_log_likelihood": mean,
        "standard_error": standard_error,
        "terms": terms,
        "active_latents": len(active_latents(vae, test)),
        **({"truth": truth.log_prob(rows).mean().item()} if truth else {}),
    }


def read_results(name, folder=Path("results/m1")):
    """Return the results of the runs that `name` stands for, in a list. UserError, with what to do, where one lacks."""
    paths = [folder / f"{run}.json" for run in runs_of(name)]
    missing = [path.stem for path in paths if not path.exists()]
    if missing:
        raise UserError(f"no results of {missing} in {folder.absolute()}; run python -m experiments m1 {name}")
    return [load_result(path) for path in paths]
