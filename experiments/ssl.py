"""The semi-supervised comparison: every method × number of labels × draw of labels, one job each."""

import time
from functools import partial
from itertools import product

import torch

from experiments.methods import EVERY, METHODS, MORE, UNDONE, Task
from experiments.runner import (
    SMOKE,
    Job,
    UserError,
    digest,
    load_data,
    load_result,
    missing_jobs,
    on_this_machine,
    run_jobs,
    workers,
)
from vae.data import binarize, labeled_split
from vae.evaluation import active_latents, error_rate, evaluate_mean

LABELS = (100, 600, 1000, 3000)
SPLITS = range(5)  # split s draws its labels with seed s; settings were chosen on that of seed 1000


def draw_task(data_set, labels, split, m1=None, folder=None):
    """Return the task of this draw of labels; seeds the global generator, too."""
    torch.manual_seed(split)
    generator = torch.Generator().manual_seed(split)
    labeled, unlabeled = labeled_split(data_set.train_labels, labels, generator, data_set.num_classes)
    return Task(data_set, labeled, unlabeled, generator, m1, folder)


def compare(data, method, labels, split, config, m1, folder):
    """Train a method on one draw of labels, and return the errors in %, and the model."""
    data_set = load_data(data)
    task = draw_task(data_set, labels, split, m1, folder)

    def valid_error(model):
        return {"valid_error": error_rate(model.classify, *data_set.part("valid"))}

    start = time.process_time()
    classify, history, model = config.train(task, valid_error)
    seconds = sum(epoch["cpu_seconds"] for epoch in history) if history else time.process_time() - start
    steps = len(task.unlabeled) // config.unlabeled_batch_size if history else 0
    return {
        "data": data,
        "method": method,
        "labels": labels,
        "split": split,
        "valid_error": round(error_rate(classify, *data_set.part("valid")), 2),
        "test_error": round(error_rate(classify, *data_set.part("test")), 2),
        "epochs": len(history),
        "updates": len(history) * steps,
        "cpu_minutes": round(seconds / 60, 2),
        "valid_bound": _mean_bound(model.unlabeled_elbo, data_set) if hasattr(model, "unlabeled_elbo") else None,
        "valid_error_by_bound": _error_by_bound(model, data_set) if hasattr(model, "labeled_elbo") else None,
        "m1_valid_elbo": m1 and _mean_bound(m1.elbo, data_set),
        "m1_active_latents": m1 and len(active_latents(m1, data_set.valid_images)),
        "curve": [round(epoch["valid_error"], 2) for epoch in history],
        "seed": split,
        "bf16": hasattr(config, "recipe") and on_this_machine(config.recipe).bf16,
        "m1_bf16": m1 and m1.about["bf16"],
        "data_checksum": data_set.checksum,
    }, model


def _mean_bound(bound, data_set):
    """Return the mean of a bound on log p(x), which needs no label, over binarized validation images."""
    x = binarize(data_set.valid_images, torch.Generator(data_set.valid_images.device).manual_seed(0))
    return round(evaluate_mean(bound, x), 2)


def _error_by_bound(model, data_set):
    """Return the error in % of who takes the label of the highest bound on log p(x, y), on a fifth of the images."""
    x, y = (part[::5] for part in data_set.part("valid"))
    every_label = torch.arange(data_set.num_classes, device=y.device).unsqueeze(1)  # (K, 1)
    return round(evaluate_mean(lambda x, y: 100 * (model.labeled_elbo(x, every_label).argmax(0) != y).float(), x, y), 2)


def job_of(data, method, labels, split, m1=None):
    """Return a job, in a smoke run a short one; `m1` is trained, for a method that builds on it."""
    config = EVERY[method].smoke() if SMOKE else EVERY[method]
    path = f"ssl/{data}/{method}-{labels}-{split}"
    return Job(path, config, partial(compare, data, method, labels, split, config, m1))


def cells_of(methods=None, labels=LABELS, splits=SPLITS):
    """Return (method, labels, split) of a comparison: all methods, and variants with 100 labels, unless some are named.

    Raises UserError for a method that there is not.
    """
    unknown = [method for method in methods or () if method not in EVERY]
    if unknown:
        raise UserError(f"no method is called {', '.join(unknown)}; there are {', '.join(EVERY)}")
    cells = list(product(methods or METHODS, labels, splits))
    if not methods and LABELS[0] in labels:
        cells += product(MORE | UNDONE, LABELS[:1], splits)
    return cells


def check(data, cells):
    """Raise UserError for a number of labels that cannot be drawn, or leaves too few images without."""
    data_set = load_data(data)
    for labels in {labels for _, labels, _ in cells}:
        try:
            _, unlabeled = labeled_split(data_set.train_labels, labels, torch.Generator(), data_set.num_classes)
        except ValueError as error:
            raise UserError(error) from error
        needed = max(getattr(EVERY[method], "unlabeled_batch_size", 0) for method, n, _ in cells if n == labels)
        if len(unlabeled) < needed:
            raise UserError(f"{labels} labels leave {len(unlabeled)} images without, less than a batch of {needed}")


def trained_m1(config, data, state):
    """Return the M1 of these settings, trained without labels on `data`; from `state` where it is finished.

    Its `about` says whether in bfloat16: what builds on it may run on a machine of another kind.
    """
    torch.manual_seed(config.seed)
    m1, _ = config.train(data.train_images, state / "m1" / digest(config))
    m1.about = {"bf16": on_this_machine(config.recipe).bf16}
    return m1


def run(data, cells, num_workers, scheduler, results, state):
    """Run those `cells` that have no result yet; first, once, each M1 that they build on."""
    jobs = {cell: job_of(data, *cell) for cell in cells}
    missing = missing_jobs(jobs.values(), results)
    if not missing:
        print(f"all {len(cells)} results are there")
        return
    check(data, cells)
    with workers(num_workers, scheduler) as parallel:
        configs = {digest(job.config.m1): job.config.m1 for job in missing if job.config.m1}
        m1s = {key: trained_m1(config, load_data(data), state / "ssl" / data) for key, config in configs.items()}
        with_m1 = [job_of(data, *cell, job.config.m1 and m1s.get(digest(job.config.m1))) for cell, job in jobs.items()]
        run_jobs(with_m1, parallel, results, state)


def read_results(folder, names, splits=SPLITS):
    """Return {method: {labels: [result, …]}} of a folder, methods in the order of `names`, splits in theirs.

    Raises UserError, with its path, for a file that is no result.
    """
    results = sorted(map(load_result, folder.glob("*.json")), key=lambda result: (result["labels"], result["split"]))
    found = {name: {} for name in names}
    for result in results:
        if result["method"] in names and result["split"] in splits:
            found[result["method"]].setdefault(result["labels"], []).append(result)
    return {name: by_labels for name, by_labels in found.items() if by_labels}
