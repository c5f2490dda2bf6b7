"""One plain training loop for every model: progress, history, exact resume, a clear stop at a non-finite loss."""

import math
import sys
import time

import torch
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from vae.checkpoint import OtherRunError, Run, checksum, plain_values, set_aside


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
    strict=False,
    name="run",
):
    """Minimize `loss_fn(batch)` + `weight_decay` · ½‖w‖² over `model`'s parameters w by Adam.

    The learning rate is `lr`, or with `one_cycle` (Smith & Topin 2018) raised to it and lowered again, and the momentum
    inversely. `before_epoch(epoch)`, from 0, may change what the loss is made of. `bf16` runs the layers in bfloat16 in
    training, not in `evaluate`. The model ends in evaluation mode. Returns the history, one dict per epoch: the mean
    loss, the CPU seconds of its training, and what `evaluate()`, a dict of numbers, says after it.

    With `checkpoint`, a path, the run is saved after each epoch and resumed from it, bit for bit; a finished run is
    taken as it is, and the last line says so. A run is known by what it computes: its settings, the data, the
    parameters that learn, the generators' states and the loss of its first batch. A checkpoint of another run is kept
    under another name, a line says why, and training starts anew; with `strict` it raises OtherRunError, a ValueError.

    Raises ValueError for batches that cannot be resumed (those of `vae.data` can), and FloatingPointError as soon as a
    loss, or a parameter after an epoch, is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs = {epochs} must be at least 1")
    if checkpoint and not hasattr(batches, "tensors"):
        raise ValueError(
            f"a run on a {type(batches).__name__} cannot be resumed: leave its checkpoint or folder out, or give it "
            "Batches or SemiSupervisedBatches of vae.data"
        )
    epochs, lr, weight_decay = int(epochs), float(lr), float(weight_decay)  # NumPy's could not be read from a file
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    one_cycle_steps = {"max_lr": lr, "total_steps": epochs * len(batches)}
    schedule = OneCycleLR(optimizer, **one_cycle_steps) if one_cycle else ConstantLR(optimizer, factor=1)
    settings = {"name": name, "epochs": epochs, "lr": lr, "steps_per_epoch": len(batches)}
    settings |= {"one_cycle": one_cycle, "weight_decay": weight_decay, "bf16": bf16}
    if checkpoint:
        before_epoch(0)
        settings = _identity(loss_fn, model.train(), batches, settings)
    run = Run(name, settings, model, optimizer, schedule, getattr(batches, "generator", None))
    history = _resume(run, checkpoint, strict) if checkpoint else []
    taken, told = len(history), time.monotonic()
    with _progress_bar(name, taken * len(batches), epochs * len(batches)) as bar:
        for epoch in range(taken, epochs):
            before_epoch(epoch)
            model.train()
            start = time.process_time()
            loss = _train_epoch(loss_fn, batches, run, epoch, epochs, bf16, bar)
            record = {"loss": loss, "cpu_seconds": time.process_time() - start}
            model.eval()
            with torch.no_grad():
                history.append(plain_values(record | evaluate()))
            if checkpoint:
                run.save(checkpoint, history)
            if bar.disable and time.monotonic() > told + 30:
                told = time.monotonic()
                print(f"{name}: epoch {epoch + 1}/{epochs}, loss {loss:.2f}", flush=True)
    model.eval()
    where = f", {taken} of them taken from {checkpoint}, not trained" if taken else ""
    print(f"{name}: {epochs} epochs{where}, loss {history[-1]['loss']:.2f}", flush=True)
    return history


def _identity(loss_fn, model, batches, settings):
    """Return `settings` and what else tells a run from others, as plain values: all that its first step depends on."""
    device = next(model.parameters()).device
    on_gpu = [device] if device.type == "cuda" else []
    states = {"batches": batches.generator.get_state(), "cpu": torch.get_rng_state()}
    states |= {str(gpu): torch.cuda.get_rng_state(gpu) for gpu in on_gpu}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of them would round otherwise
    with torch.random.fork_rng(on_gpu):
        first_loss = loss_fn(next(iter(batches)))
    torch.set_num_threads(threads)
    batches.generator.set_state(states["batches"])
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])  # a running mean, for example
    computed = {
        "device": device.type,
        "data": checksum(batches.tensors)[:8],
        "initial parameters": checksum({name: p for name, p in model.named_parameters() if p.requires_grad})[:8],
        "random state": checksum(states)[:8],
        "loss of the first batch": first_loss.item(),
    }
    return plain_values(settings | computed)


def _resume(run, checkpoint, strict):
    """Return the history that the run goes on from, empty where it starts."""
    try:
        return run.resume(checkpoint)
    except OtherRunError as error:
        if strict:
            raise OtherRunError(f"{error}; delete it to start over") from None
        print(f"{run.name}: training anew, for {error}; it is kept as {set_aside(checkpoint)}", flush=True)
        return []


def _progress_bar(name, done, total):
    """A line on stdout, rewritten while training runs and then gone: a notebook keeps no trace of it. Not in a file."""
    live = sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel")
    form = "{desc}: {percentage:3.0f} %{postfix}, {remaining} left"
    shown = {"bar_format": form, "file": sys.stdout, "leave": False, "mininterval": 0.5, "disable": not live}
    return tqdm(desc=name, initial=done, total=total, **shown)


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
        remedy = "Lower the learning rate, or look for a scale that collapsed" if epoch + step else "Scale x to about 1"
        raise FloatingPointError(
            f"{name}: the loss became {loss} in epoch {epoch + 1}, step {step + 1}. "
            f"{remedy}; a checkpoint, if any, holds the last epoch"
        )
    return loss


def _check_finite(model, name, epoch):
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise FloatingPointError(
            f"{name}: parameters that are not finite after epoch {epoch + 1}, though the loss was; "
            "look for a gradient that is infinite or NaN. A checkpoint, if any, holds the epoch before"
        )
