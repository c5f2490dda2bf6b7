"""What y means in M2's plain recipe after more and more updates: a figure of the models that its runs left."""

from pathlib import Path

import torch

from experiments.methods import LONG
from experiments.runner import MODEL, RESULTS, STATE, UserError, load_data, load_result, write_figure
from vae.plotting import image_panels
from vae.saving import load

METHODS = [method for method in LONG if method.startswith("m2_softplus_exact")]  # from short to long
DIGITS = (2, 4, 5, 7, 8, 9)


@torch.no_grad()
def analogies(m2, x):
    """Return each of the images x (B, *X), a gap, and its style with every label: (B · (K + 2), *X)."""
    styles = m2.encoder(x, m2.classify(x)).mean  # (B, Z)
    labels = torch.arange(m2.classifier.num_classes).unsqueeze(1)  # (K, 1)
    return torch.stack([x, torch.zeros_like(x), *m2.decoder(styles, labels).mean], 1).flatten(0, 1)


def write(path=Path("_images/m2_plain_analogies.png")):
    """Write the figure. UserError, with the command that trains them, where a model is not there."""
    jobs = [f"ssl/mnist/{method}-100-0" for method in METHODS]
    models = [STATE / job / MODEL for job in jobs]
    for job, model in zip(jobs, models, strict=True):
        if not model.exists():
            command = f"python -m experiments ssl --methods {' '.join(METHODS)} --labels 100 --splits 0"
            raise UserError(f"there is no {model}: delete results/{job}.json if it is there, and run {command}")
    images, labels = load_data("mnist").part("test")
    x = torch.stack([images[labels == digit][0] for digit in DIGITS])
    results = [load_result(RESULTS / f"{job}.json") for job in jobs]
    titles = [f"{result['updates']:,} updates, error {result['test_error']:.0f} %" for result in results]
    panels = {title: analogies(load(model), x) for title, model in zip(titles, models, strict=True)}
    write_figure(image_panels(panels, columns=len(panels[titles[0]]) // len(x)), path)
