"""The models that come with the package, from what `make figures` and the comparison have trained.

Each is stored in half precision, and its error, or bound, is that of the stored numbers.
"""

import torch

from experiments.data import load_data
from experiments.runner import MODEL, STATE
from vae.data import binarize
from vae.evaluation import error_rate, evaluate_mean
from vae.models import VAE
from vae.saving import WEIGHTS, load

NOTEBOOKS = STATE / "notebooks"
SOURCES = {  # where training left each model, and what it is
    "m1-2d": (NOTEBOOKS / "m1-2d.safetensors", "M1 with two latents: the plane of digits"),
    "m2-2d": (NOTEBOOKS / "m2-2d.safetensors", "M2 with two latents, trained with every label: one style, ten digits"),
    "m2-naive": (NOTEBOOKS / "m2-naive.safetensors", "M2 with 100 labels, trained as the equations say"),
    "m2-100": (NOTEBOOKS / "m2-100.safetensors", "M2 with 100 labels, trained in stages: the notebook's"),
    "m1m2-100": (STATE / "ssl/mnist/m1m2-100-0" / MODEL, "M1+M2 with 100 labels"),
}


def measure(model, data):
    """Return the test error in %, or the test bound in nats of a model that does not classify."""
    images, labels = data.part("test")
    if hasattr(model, "classify"):
        return {"test_error": round(error_rate(model.classify, images, labels), 2)}
    torch.manual_seed(0)
    x = binarize(images, torch.Generator().manual_seed(0))
    bound, rows = (model.elbo, (x,)) if isinstance(model, VAE) else (model.labeled_elbo, (x, labels))
    return {"test_bound": round(evaluate_mean(bound, *rows), 2)}


def write():
    """Write them into the package. FileNotFoundError, before any is written, where one is not trained yet."""
    models = {name: load(path).half().float() for name, (path, _) in SOURCES.items()}  # what the files will hold
    data = load_data("mnist")
    for name, model in models.items():
        target = WEIGHTS / f"{name}.safetensors"
        about = {"what": SOURCES[name][1], "data": data.name, "data_checksum": data.checksum, "license": "MIT"}
        about |= model.about | measure(model, data)
        model.save(target, dtype=torch.float16, **about)
        print(f"{name}: {target.stat().st_size / 1e6:.1f} MB, {about}"[:200])
