"""One plain training loop for every model: progress, history, exact resume, a clear stop at a non-finite loss."""

import math
import sys
import time

import torch
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from vae.checkpoint import Run


def fit(
    loss_fn,
    model,
    batches,
    *,
    epochs,
    lr,
    one_cycle=True,
    weight_decay=0.0,
    bf16=False,
    before_epoch=lambda epoch: None,
    evaluate=dict,
    checkpoint=None,
    settings=None,
    name="run",
):
    """Minimize `loss_fn(batch)` + `weight_decay` · ½‖w‖² over `model`'s parameters w by Adam.

    The learning rate is `lr`, or with `one_cycle` (Smith & Topin 2018) raised to it and lowered again, and the momentum
    inversely. `before_epoch(epoch)`, from 0, may change what the loss is made of.
    Returns the history, one dict per epoch: the mean loss, the CPU seconds of its training, and what `evaluate()`, a
    dict of floats, says after it. With `checkpoint`, a path, the run is saved after each epoch and resumed from it, bit
    for bit; a finished run is taken as it is. `settings`, a dict of plain values, is whatever else makes it this run
    and not another. `bf16` runs the layers in bfloat16 in training, not in `evaluate`. The model ends in evaluation
    mode. Raises FloatingPointError as soon as a loss, or a parameter after an epoch, is not finite, and ValueError for
    a checkpoint that is not of this run.
    """
    if epochs < 1:
        raise ValueError(f"epochs = {epochs} must be at least 1")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    one_cycle_steps = {"max_lr": lr, "total_steps": epochs * len(batches)}
    schedule = OneCycleLR(optimizer, **one_cycle_steps) if one_cycle else ConstantLR(optimizer, factor=1)
    settings = {"epochs": epochs, "lr": lr, "steps_per_epoch": len(batches), **(settings or {})}
    settings |= {"one_cycle": one_cycle, "weight_decay": weight_decay, "bf16": bf16}
    run = Run(name, settings, model, optimizer, schedule, batches.generator)
    history = run.resume(checkpoint) if checkpoint else []
    with _progress_bar(name, len(history) * len(batches), epochs * len(batches)) as bar:
        for epoch in range(len(history), epochs):
            before_epoch(epoch)
            model.train()
            start = time.process_time()
            loss = _train_epoch(loss_fn, batches, run, epoch, epochs, bf16, bar)
            record = {"loss": loss, "cpu_seconds": time.process_time() - start}
            model.eval()
            with torch.no_grad():
                history.append(record | evaluate())
            if checkpoint:
                run.save(checkpoint, history)
    model.eval()
    print(f"{name}: {epochs} epochs, loss {history[-1]['loss']:.2f}", flush=True)
    return history


def _progress_bar(name, done, total):
    """A line on stdout, rewritten while training runs and then gone: a notebook keeps no trace of it."""
    form = "{desc}: {percentage:3.0f} %{postfix}, {remaining} left"
    return tqdm(desc=name, initial=done, total=total, bar_format=form, file=sys.stdout, leave=False, mininterval=0.5)


def _train_epoch(loss_fn, batches, run, epoch, epochs, bf16, bar):
    """Take one step for each batch, and return the mean loss."""
    total = 0.0
    for step, batch in enumerate(batches):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_fn(batch)
        total += _finite(loss.item(), run.name, epoch, step)
        _step(loss, **run.parts)
        bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}, loss {total / (step + 1):.2f}", refresh=False)
        bar.update()
    _check_finite(run.model, run.name, epoch)
    return total / len(batches)


def _step(loss, optimizer, schedule):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _finite(loss, name, epoch, step):
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"{name}: the loss became {loss} in epoch {epoch + 1}, step {step + 1}. "
            "Lower the learning rate, or look for a scale that collapsed; a checkpoint, if any, holds the last epoch"
        )
    return loss


def _check_finite(model, name, epoch):
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError(
            f"{name}: parameters that are not finite after epoch {epoch + 1}, though the loss was; "
            "look for a gradient that is infinite or NaN. A checkpoint, if any, holds the epoch before"
        )
