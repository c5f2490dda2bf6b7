"""One plain training loop for every model: progress, history, exact resume, a clear stop at a non-finite loss."""

import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, OneCycleLR
from tqdm import tqdm

from vae.checkpoint import Run, plain_values


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `fit` optimizes.

    The learning rate is `lr` where `schedule` is "constant"; if "falling", it falls to 0 in the last quarter of the
    steps; in "one cycle" (Smith & Topin 2018) it rises to `lr` and falls again, and the momentum inversely. The prior
    on the weights is Normal(0, 1 / weight_prior), 1 in both papers, and 0 for none: training then also maximizes
    log p(weights) / N, N training rows. `bf16` runs the layers in bfloat16 in training.
    """

    lr: float = 1e-3
    schedule: str = "one cycle"
    weight_prior: float = 0
    bf16: bool = False


def fit(
    loss_fn,
    model,
    batches,
    recipe,
    folder=None,
    *,
    epochs,
    name="run",
    before_epoch=None,
    evaluate=None,
    strict=False,
    verbose=True,
):
    """Minimize `loss_fn(batch)` over `model`'s parameters by Adam, as a `Recipe` says, in `epochs` passes of `batches`.

    `before_epoch(epoch)`, from 0, may change what the loss is made of. Returns the history, one dict per epoch: the
    mean loss, the updates and CPU seconds that it took, and what `evaluate()`, a dict of numbers, says after it. The
    model ends in evaluation mode. `verbose=False` is silent but for what is found in a file.

    With `folder`, the run is saved to NAME.pt in it after each epoch and resumed from it, bit for bit; a finished run
    is taken as it is, and a line says so. A run is known by its recipe, by what it starts from (data, parameters,
    generators) and by what it computes first (loss, gradient, evaluation). The file of another run is kept under
    another name, a line says why, and training starts anew; with `strict` it raises OtherRunError, a ValueError.

    Raises ValueError for batches that cannot be resumed (those of `vae.data` can), and FloatingPointError as soon as a
    loss, or a parameter after an epoch, is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs = {epochs} must be at least 1")
    evaluate, before_epoch = evaluate or (lambda: {}), before_epoch or (lambda epoch: None)
    settings = asdict(recipe) | {"name": name, "epochs": int(epochs), "steps_per_epoch": len(batches)}
    run = Run(settings, model, *_optimizer(model, batches, recipe, int(epochs)), getattr(batches, "generator", None))
    path, history = None, []
    if folder:
        path = Path(folder) / f"{name}.pt"
        before_epoch(0)
        model.train()
        run.identify(loss_fn, batches, evaluate)
        history = run.resume(path, strict)
        for epoch in range(len(history)):
            before_epoch(epoch)
    taken, told = len(history), time.monotonic()
    with _progress_bar(name, taken * len(batches), epochs * len(batches), verbose) as bar:
        for epoch in range(taken, epochs):
            before_epoch(epoch)
            model.train()
            start = time.process_time()
            loss = _train_epoch(loss_fn, batches, run, epoch, recipe.bf16, bar)
            record = {"loss": loss, "updates": len(batches), "cpu_seconds": time.process_time() - start}
            model.eval()
            history.append(_evaluated(record, evaluate))
            if folder:
                run.save(path, history)
            if verbose and bar.disable and time.monotonic() > told + 30:
                told = time.monotonic()
                print(f"{name}: epoch {epoch + 1}/{epochs}, loss {loss:.2f}", flush=True)
    model.eval()
    if verbose or taken:
        where = f", {taken} of them taken from {path}, not trained" if taken else ""
        print(f"{name}: {epochs} epochs{where}, loss {history[-1]['loss']:.2f}", flush=True)
    return history


def _optimizer(model, batches, recipe, epochs):
    """Return the optimizer and the schedule of its learning rate. ValueError for a schedule that is not known."""
    lr, weight_decay = float(recipe.lr), 0.0  # np.float64 could not be read from a checkpoint
    if recipe.weight_prior:
        if not hasattr(batches, "num_rows"):
            raise ValueError(f"weight_prior needs the number of rows: give {type(batches).__name__} a num_rows")
        weight_decay = float(recipe.weight_prior / batches.num_rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    if recipe.schedule == "constant":
        return optimizer, ConstantLR(optimizer, factor=1)
    steps = epochs * len(batches)
    if recipe.schedule == "falling":
        return optimizer, LambdaLR(optimizer, lambda step: min(1, 4 * (1 - step / steps)))
    if recipe.schedule == "one cycle":
        return optimizer, OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    raise ValueError(f'schedule = {recipe.schedule!r} must be "constant", "falling" or "one cycle"')


@torch.no_grad()
def _evaluated(record, evaluate):
    """Return an epoch's record and what `evaluate()` says. ValueError for a name that the record has already."""
    found = evaluate()
    if both := record.keys() & found.keys():
        raise ValueError(f"evaluate says {sorted(both)}, which the history has already: rename it")
    return plain_values(record | found)


def _progress_bar(name, done, total, verbose):
    """A line on stdout, rewritten while training runs and then gone: a notebook keeps no trace of it. Off in a file."""
    live = sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel")
    looks = {"bar_format": "{desc}: {percentage:3.0f} %{postfix}, {remaining} left", "leave": False, "mininterval": 0.5}
    return tqdm(desc=name, initial=done, total=total, file=sys.stdout, disable=not (live and verbose), **looks)


def _train_epoch(loss_fn, batches, run, epoch, bf16, bar):
    """Take one step for each batch, and return the mean loss. FloatingPointError as soon as something is not finite."""
    total = 0.0
    for step, batch in enumerate(batches):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_fn(batch)
        total += loss.item()
        if not math.isfinite(total):
            remedy = "Lower the learning rate, or look for a scale that collapsed"
            raise FloatingPointError(
                f"{run.name}: the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}. "
                f"{remedy if epoch + step else 'Scale x to about 1'}; a checkpoint, if any, holds the last epoch"
            )
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        bar.set_postfix_str(f"epoch {epoch + 1}/{run.identity['epochs']}, loss {total / (step + 1):.2f}", refresh=False)
        bar.update()
    if not all(parameter.isfinite().all() for parameter in run.model.parameters()):
        raise FloatingPointError(
            f"{run.name}: parameters that are not finite after epoch {epoch + 1}, though the loss was; "
            "look for a gradient that is infinite or NaN. A checkpoint, if any, holds the epoch before"
        )
    return total / len(batches)
