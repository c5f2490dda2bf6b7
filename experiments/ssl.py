"""The semi-supervised comparison: every method × number of labels × draw of labels, one job each."""

import time
from functools import partial
from itertools import product

import torch
from torch.distributions import kl_divergence

from experiments import SMOKE, UserError
from experiments.data import load_data
from experiments.methods import ABLATIONS, BY_KEY, COMPARISON, Task
from experiments.runner import Job, digest, load_result, missing_jobs, on_this_machine, run_jobs, workers
from vae.data import hide_labels
from vae.evaluation import active_latents, error_rate, evaluate_mean
from vae.stacked import StackedSemiSupervisedVAE

NUM_LABELED = (100, 600, 1000, 3000)
SPLITS = range(5)  # split s draws its labels with seed s; settings were chosen on that of seed 1000


def draw_task(data_set, num_labeled, split, m1=None, folder=None):
    """Return the task of this draw of labels; seeds the global generator, too."""
    torch.manual_seed(split)
    generator = torch.Generator().manual_seed(split)
    return Task(data_set, hide_labels(data_set.train_labels, num_labeled, generator), generator, m1, folder)


def compare(data_name, method, num_labeled, split, config, m1, folder):
    """Train a method on one draw of labels, and return the errors in %, and the model."""
    data_set = load_data(data_name)
    task = draw_task(data_set, num_labeled, split, m1, folder)

    def watch(model):
        told = {"valid_error": error_rate(model.classify, *data_set.part("valid"))}
        if isinstance(model, StackedSemiSupervisedVAE):
            told["kl_of_style"] = _kl_of_style(model, data_set.valid_images[::5])
        return told

    start = time.process_time()
    classify, history, model = config.train(task, watch)
    seconds = sum(epoch["cpu_seconds"] for epoch in history) if history else time.process_time() - start
    return {
        "data": data_name,
        "method": method,
        "num_labeled": num_labeled,
        "split": split,
        "valid_error": round(error_rate(classify, *data_set.part("valid")), 2),
        "test_error": round(error_rate(classify, *data_set.part("test")), 2),
        "epochs": len(history),
        "updates": sum(epoch["updates"] for epoch in history),
        "cpu_minutes": round(seconds / 60, 2),
        "valid_error_by_bound": _error_by_bound(model, data_set) if hasattr(model, "unlabeled_elbo") else None,
        "m1_active_latents": len(active_latents(m1, data_set.valid_images)) if m1 else None,
        "curve": [round(epoch["valid_error"], 2) for epoch in history],
        "kl_of_style": [round(epoch["kl_of_style"], 2) for epoch in history if "kl_of_style" in epoch],
        "seed": split,
        "bf16": hasattr(config, "recipe") and on_this_machine(config.recipe).bf16,
        "m1_bf16": m1.about["bf16"] if m1 else None,
        "data_checksum": data_set.checksum,
    }, model


def _kl_of_style(m1m2, images):
    """Return the mean of KL(q(z2|y, z1) ‖ p(z2)) in nats, at the mean of q(z1|x) and the most probable label."""
    m2 = m1m2.m2

    def divergence(z1):
        return kl_divergence(m2.encoder(z1, m2.classify(z1)), m2.prior)

    return evaluate_mean(divergence, m1m2.features(images).chunk(2, dim=1)[0])


def _error_by_bound(model, data_set):
    """Return the error in % of who takes the label of the highest bound on log p(x, y), on a fifth of the images."""
    x, y = (part[::5] for part in data_set.part("valid"))
    every_label = torch.arange(data_set.num_classes, device=y.device).unsqueeze(1)  # (K, 1)
    return round(evaluate_mean(lambda x, y: 100 * (model.labeled_elbo(x, every_label).argmax(0) != y).float(), x, y), 2)


def job_of(data_name, method, num_labeled, split, m1=None):
    """Return a job, in a smoke run a short one; `m1` is trained, for a method that builds on it."""
    config = BY_KEY[method].method.smoke() if SMOKE else BY_KEY[method].method
    path = f"ssl/{data_name}/{method}-{num_labeled}-{split}"
    return Job(path, config, partial(compare, data_name, method, num_labeled, split, config, m1))


def cells_of(methods=None, counts=NUM_LABELED, splits=SPLITS):
    """Return (method, number of labels, split) of all rows, ablations with 100 labels, unless some rows are named.

    Raises UserError for a row that there is not.
    """
    unknown = [method for method in methods or () if method not in BY_KEY]
    if unknown:
        raise UserError(f"no method is called {', '.join(unknown)}; there are {', '.join(BY_KEY)}")
    cells = list(product(methods or COMPARISON, counts, splits))
    if not methods and NUM_LABELED[0] in counts:
        cells += product(ABLATIONS, NUM_LABELED[:1], splits)
    return cells


def check(data_name, cells):
    """Raise UserError for a number of labels that cannot be drawn, or leaves too few images without."""
    y = load_data(data_name).train_labels
    for count in {count for _, count, _ in cells}:
        try:
            hide_labels(y, count, torch.Generator())
        except ValueError as error:
            raise UserError(error) from error
        left = len(y) - count
        needed = max(getattr(BY_KEY[method].method, "unlabeled_batch_size", 0) for method, n, _ in cells if n == count)
        if left < needed:
            raise UserError(f"{count} labels leave {left} images without, less than a batch of {needed}")


def trained_m1(config, data, state):
    """Return the M1 of these settings, trained without labels on `data`; from `state` where it is finished.

    Its `about` says whether in bfloat16: what builds on it may run on a machine of another kind.
    """
    torch.manual_seed(config.seed)
    m1, _ = config.train(data.train_images, state / "m1" / digest(config))
    m1.about = {"bf16": on_this_machine(config.recipe).bf16}
    return m1


def run(data_name, cells, num_workers, scheduler, results, state):
    """Run those `cells` that have no result yet; first, once, each M1 that they build on."""
    jobs = {cell: job_of(data_name, *cell) for cell in cells}
    missing = missing_jobs(jobs.values(), results)
    if not missing:
        print(f"all {len(cells)} results are there")
        return
    check(data_name, cells)
    with workers(num_workers, scheduler) as parallel:
        configs = {digest(job.config.m1): job.config.m1 for job in missing if job.config.m1}
        m1s = {None: None}
        for key, config in configs.items():
            m1s[key] = trained_m1(config, load_data(data_name), state / "ssl" / data_name)
        keys = {cell: digest(job.config.m1) if job.config.m1 else None for cell, job in jobs.items()}
        run_jobs([job_of(data_name, *cell, m1s.get(key)) for cell, key in keys.items()], parallel, results, state)


def read_results(folder, methods):
    """Return {method: {number of labels: [result, …]}} of a folder, in the order of `methods` and of SPLITS.

    Raises UserError, with its path, for a file that is no result.
    """
    results = sorted(map(load_result, folder.glob("*.json")), key=lambda r: (r["num_labeled"], r["split"]))
    found = {method: {} for method in methods}
    for result in results:
        if result["method"] in found and result["split"] in SPLITS:
            found[result["method"]].setdefault(result["num_labeled"], []).append(result)
    return {method: by_count for method, by_count in found.items() if by_count}
