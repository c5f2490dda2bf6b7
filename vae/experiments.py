"""The runs of M1 with their settings, one small JSON file each: python -m vae.experiments --help.

What is already there is skipped; what a kill interrupts resumes from its last epoch. Settings were chosen on the
validation images.
"""

import argparse
import importlib
import os
from functools import partial
from pathlib import Path

import joblib
import torch

from vae.data import Batches, binarize, dequantize, two_gaussians
from vae.evaluation import elbo_terms, log_likelihood, mean_and_standard_error
from vae.jobs import data_md5, finished_result, load_data, load_result, run_job
from vae.models import VAE, active_latents
from vae.networks import BernoulliDecoder, ContinuousBernoulliDecoder, Encoder, GaussianDecoder
from vae.objectives import elbo
from vae.stages import fit_stage
from vae.training import evaluate_mean, load_checkpoint

RESULTS = Path("results/vae")
SMOKE = os.environ.get("VAE_SMOKE") == "1"
DECODERS = {
    "Bernoulli": BernoulliDecoder,
    "continuous Bernoulli": ContinuousBernoulliDecoder,
    "Gaussian": GaussianDecoder,
}
# The scale of a pixel: at least that of the noise which dequantises a grey level, at most that of a coin in [0, 1].
PIXEL_LIMITS = [1 / (256 * 12**0.5), 0.5]

_COMMON = {"batch_size": 200, "lr": 2e-3, "samples": {"per_image": 1000, "images": 1000}}
_BINARY = _COMMON | {"data": "binary", "seed": 0, "decoder": {"kind": "Bernoulli"}}
_DEEP = _BINARY | {"z_dim": 50, "hidden_dims": [500, 500], "samples": {"per_image": 5000, "images": 2000}}
_GREY = _COMMON | {
    "data": "grey",
    "z_dim": 10,
    "hidden_dims": [200, 200],
    "epochs": {"elbo": 4},
    "samples": {"per_image": 100, "images": 1000},
}
_TOY = _COMMON | {
    "data": "two Gaussians",
    "z_dim": 1,
    "hidden_dims": [64, 64],
    "batch_size": 100,
    "lr": 1e-2,
    "samples": {"per_image": 500, "images": 20_000},
}

LATENTS = (3, 5, 10, 20, 200)  # in figure 2 of the paper
VARIANCES = {  # where a decoder of grey images gets its variances from
    "undequantized": {"data": "grey levels", "decoder": {"kind": "Gaussian", "scale": "pixel"}},
    "free": {"decoder": {"kind": "Gaussian", "scale": "pixel"}},
    "limited": {"decoder": {"kind": "Gaussian", "scale": "pixel", "scale_limits": PIXEL_LIMITS}},
    "global": {"decoder": {"kind": "Gaussian", "scale": "global"}},
    "optimal": {"decoder": {"kind": "Gaussian", "scale": "optimal"}},
    "fixed": {"decoder": {"kind": "Gaussian", "scale": 1.0}},
    "continuous": {"decoder": {"kind": "continuous Bernoulli"}},
}


def _of_seeds(name, num, settings):
    return {f"{name}-{seed}": settings | {"seed": seed} for seed in range(num)}


RUNS = {
    "mnist-50": _DEEP | {"epochs": {"warm_up": 12, "elbo": 300}},
    "mnist-50-iwae": _DEEP | {"start": "mnist-50", "epochs": {"iwae": 5}, "iwae_samples": 20, "lr": 1e-3},
}
for n in LATENTS:
    RUNS[f"latents-{n}"] = _BINARY | {"z_dim": n, "hidden_dims": [500], "epochs": {"elbo": 24}}
for variance, change in VARIANCES.items():
    RUNS |= _of_seeds(f"variance-{variance}", 20 if variance == "optimal" else 5, _GREY | change)
for scale, seeds in (("pixel", 10), ("example", 20)):
    decoder = {"kind": "Gaussian", "scale": scale}
    RUNS |= _of_seeds(f"toy-{scale}", seeds, _TOY | {"decoder": decoder, "epochs": {"elbo": 40}})
for precision in ("fp32", "bf16"):
    short = {"epochs": {"elbo": 12}, "samples": {"per_image": 100, "images": 1000}, "bf16": precision == "bf16"}
    RUNS |= _of_seeds(f"precision-{precision}", 5, _DEEP | short)
_TIGHT = {"decoder": {"kind": "Gaussian", "scale": "example"}, "epochs": {"iwae": 100}, "iwae_samples": 5}
RUNS |= _of_seeds("toy-iwae", 5, _TOY | _TIGHT)
RESULT_KEYS = {"name", "seed", "diverged", "curve", "updates", "cpu_minutes"}


def settings_of(name, smoke=False):
    """Return the settings of the run `name`; for a smoke run, one epoch of each stage and few samples."""
    settings = RUNS[name]
    if smoke:
        few = {"epochs": dict.fromkeys(settings["epochs"], 1), "samples": {"per_image": 20, "images": 50}}
        settings = settings | few
    return settings


def _as_it_is(rows, generator):
    return rows


def _data(settings, smoke):
    """Return training rows, the transform of their batches, validation rows and test rows."""
    if settings["data"] == "two Gaussians":
        density = two_gaussians()
        return density.sample((5000,)), _as_it_is, density.sample((5000,)), density.sample((20_000,))
    mnist = load_data(smoke)
    transform = {"binary": binarize, "grey": dequantize, "grey levels": _as_it_is}[settings["data"]]
    held_out = enumerate((mnist.valid_images, mnist.test_images))
    return mnist.train_images, transform, *(transform(x, torch.Generator().manual_seed(n)) for n, x in held_out)


def build(settings, x_dim):
    """Return the untrained VAE that `settings` describe."""
    z_dim, dims, options = settings["z_dim"], settings["hidden_dims"], dict(settings["decoder"])
    decoder = DECODERS[options.pop("kind")]
    return VAE(Encoder(x_dim, z_dim, dims), decoder(z_dim, x_dim, dims[::-1], **options))


def train(name, models, smoke=False):
    """Train the run `name`, and the one that it starts from, and return the VAE, its history and its test rows.

    `models` is the folder for checkpoints: what is finished is taken from there.
    """
    settings = settings_of(name, smoke)
    torch.manual_seed(settings["seed"])
    train_rows, transform, valid, test = _data(settings, smoke)
    vae = build(settings, train_rows.shape[1])
    if "start" in settings:
        vae.load_state_dict(train(settings["start"], models, smoke)[0].state_dict())
    generator = torch.Generator().manual_seed(settings["seed"])
    batches = Batches(train_rows, settings["batch_size"], generator, transform)

    def bounds():
        held_out = {"valid_elbo": evaluate_mean(vae.elbo, valid), "test_elbo": evaluate_mean(vae.elbo, test)}
        return held_out | {"updates": len(batches)}

    def weighted(kl_weight, x):
        posterior, likelihood = vae(x)
        return -elbo(x, posterior, likelihood, vae.prior, kl_weight).mean()

    losses = {
        "warm_up": partial(weighted, 0.3),
        "elbo": partial(weighted, 1),
        "iwae": lambda x: -vae.importance_weighted_bound(x, settings["iwae_samples"]).mean(),
    }
    history, of_training = [], {key: value for key, value in settings.items() if key != "samples"}
    for stage in settings["epochs"]:
        history += fit_stage(losses[stage], vae, batches, stage, of_training, models / name, bounds)
    return vae, history, test


def measure(name, models, smoke=False):
    """Train the run `name` and return what its file says: bounds and log-likelihoods in nats, on the test data."""
    settings = settings_of(name, smoke)
    try:
        vae, history, test = train(name, models, smoke)
    except FloatingPointError as error:
        stages = [models / name / f"{stage}.pt" for stage in settings["epochs"]]
        history = [epoch for path in stages if path.exists() for epoch in load_checkpoint(path)["history"]]
        result = {"diverged": str(error)}
    else:
        result = {"diverged": None} | _measured(vae, test, settings)
    return {
        "name": name,
        "seed": settings["seed"],
        **result,
        "updates": sum(epoch["updates"] for epoch in history),
        "cpu_minutes": round(sum(epoch["cpu_seconds"] for epoch in history) / 60, 2),
        "curve": [[round(epoch[key], 2) for key in ("loss", "valid_elbo", "test_elbo")] for epoch in history],
        "data_md5": data_md5(load_data(smoke)),
    }


def _measured(vae, test, settings):
    """Return bounds and estimates; log p(x), which takes longer, is of fewer rows than the bound, evenly spread."""
    samples, images = settings["samples"]["per_image"], settings["samples"]["images"]
    rows = test[:: max(1, len(test) // images)]
    mean, standard_error = mean_and_standard_error(
        torch.cat([log_likelihood(vae, x, samples) for x in rows.split(100)])
    )
    terms = elbo_terms(vae, test[:10_000])
    truth = {"truth": two_gaussians().log_prob(rows).mean().item()} if settings["data"] == "two Gaussians" else {}
    return {
        "test_elbo": terms["elbo"],
        "test_log_likelihood": mean,
        "standard_error": standard_error,
        "terms": terms,
        "active_latents": len(active_latents(vae, test)),
        **truth,
    }


def run(name, results, state, smoke=False):
    """Return the result of the run `name` from the folder `results`, where this puts it if it is not there."""
    settings = settings_of(name, smoke)
    return run_job(name, settings, lambda folder: measure(name, state / "models", smoke), results, state)


def runs_of(name):
    """Return the names of the runs that `name` stands for: itself, or a group's, such as toy, toy-iwae or latents."""
    return [name] if name in RUNS else [run for run in RUNS if run.startswith(f"{name}-")]


def read_results(name, folder=RESULTS):
    """Return the results of the runs that `name` stands for, in a list.

    Raises ValueError, with what to do, where one of them is missing.
    """
    names = runs_of(name)
    missing = [run for run in names if not (folder / f"{run}.json").exists()]
    if missing or not names:
        raise ValueError(
            f"no results of {missing or name} in {folder.absolute()}; run python -m vae.experiments {name}"
        )
    return [load_result(folder / f"{run}.json", RESULT_KEYS) for run in names]


def main(arguments=None):
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m vae.experiments", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help=f"runs, or groups of them such as toy or variance-free; all by default: {', '.join(RUNS)}",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    options = parser.parse_args(arguments)
    root = Path("preview/smoke" if SMOKE else ".")
    results, state = (root / RESULTS).absolute(), (root / "checkpoints/experiments").absolute()
    unknown = [name for name in options.names if not runs_of(name)]
    if unknown:
        parser.error(f"no run is called {unknown}")
    names = list(dict.fromkeys(run for name in options.names or RUNS for run in runs_of(name)))
    missing = [name for name in names if finished_result(name, settings_of(name, SMOKE), results) is None]
    print(f"{len(names) - len(missing)} of {len(names)} results are there, {len(missing)} to go", flush=True)
    parallel = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered", pre_dispatch="all", batch_size=1)
    for done, result in enumerate(parallel(joblib.delayed(run)(n, results, state, SMOKE) for n in missing), start=1):
        outcome = (
            result["diverged"] or f"test ELBO {result['test_elbo']:.2f}, log p(x) {result['test_log_likelihood']:.2f}"
        )
        print(f"[{done}/{len(missing)}] {result['name']}: {outcome}; {result['cpu_minutes']} CPU minutes", flush=True)


if __name__ == "__main__":
    importlib.import_module("vae.experiments").main()  # by its name, under which the workers find `run`
