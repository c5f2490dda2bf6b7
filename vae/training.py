"""One plain training loop for every model: progress, history, exact resume, a clear stop at a non-finite loss."""

import math
import sys
import zipfile
from pathlib import Path

import torch
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from vae.files import atomic_path


def fit(loss_fn, model, batches, *, epochs, lr, evaluate=dict, checkpoint=None, settings=None, bf16=False, name="run"):
    """Minimise `loss_fn(batch)` over `model`'s parameters by Adam under a one-cycle schedule.

    The schedule (Smith & Topin 2018) raises the learning rate to `lr` and lowers it again, and the momentum inversely.
    Returns the history, one dict per epoch: the mean loss, and what `evaluate()`, a dict of floats, says after it.
    With `checkpoint`, a path, the run is saved after each epoch and resumed from it, bit for bit; a finished run is
    taken as it is. `settings`, a dict of plain values, is whatever else makes it this run and not another. `bf16` runs
    the layers in bfloat16 in training, not in `evaluate`. The model ends in evaluation mode.

    Raises FloatingPointError as soon as a loss, or a parameter after an epoch, is not finite, and ValueError for a
    checkpoint that is not of this run.
    """
    if epochs < 1:
        raise ValueError(f"epochs = {epochs} must be at least 1")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * len(batches))
    settings = {"epochs": epochs, "lr": lr, "steps_per_epoch": len(batches), "bf16": bf16, **(settings or {})}
    run = _Run(name, settings, model, optimizer, schedule, batches.generator)
    history = run.resume(Path(checkpoint)) if checkpoint else []
    with _progress_bar(name, len(history) * len(batches), epochs * len(batches)) as bar:
        for epoch in range(len(history), epochs):
            model.train()
            total = 0.0
            for step, batch in enumerate(batches):
                with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
                    loss = loss_fn(batch)
                total += _finite(loss.item(), name, epoch, step)
                _step(loss, optimizer, schedule)
                bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}, loss {total / (step + 1):.2f}", refresh=False)
                bar.update()
            _check_finite(model, name, epoch)
            model.eval()
            with torch.no_grad():
                history.append({"loss": total / len(batches), **evaluate()})
            if checkpoint:
                run.save(Path(checkpoint), history)
    model.eval()
    print(f"{name}: {epochs} epochs, loss {history[-1]['loss']:.2f}", flush=True)
    return history


def evaluate_mean(value, *tensors, batch_size=1000):
    """Return the mean over all rows of `value(*rows)`, one value per example, computed in batches without gradient."""
    with torch.no_grad():
        batches = zip(*(t.split(batch_size) for t in tensors), strict=True)
        return torch.cat([value(*rows) for rows in batches]).mean().item()


def error(classify, images, labels):
    """Return the percentage of images (N, 784) whose label (N,) is not the one that `classify` says."""
    with torch.no_grad():
        return 100 * (classify(images) != labels).double().mean().item()


def load_checkpoint(path):
    """Return the state that `fit` saved at `path`. Executes nothing from it. ValueError if it is no such file."""
    try:
        with open(path, "rb") as file:
            if zipfile.ZipFile(file).testzip():
                raise ValueError("its checksum is wrong")  # which torch.load does not look at
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} is not a readable checkpoint; delete it to start over") from error
    if not (isinstance(state, dict) and {"settings", "history", "model"} <= state.keys()):
        raise ValueError(f"{path} is not a checkpoint of vae.training.fit; delete it or choose another path")
    return state


def load_model(model, path):
    """Load the parameters that `fit` saved at `path` into `model`. ValueError if they are of another architecture."""
    _load_parameters(model, load_checkpoint(path), path)


def _load_parameters(model, state, path):
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} was saved from another architecture: {error}") from error


def _progress_bar(name, done, total):
    """A line on stdout, rewritten while training runs and then gone: a notebook keeps no trace of it."""
    form = "{desc}: {percentage:3.0f} %{postfix}, {remaining} left"
    return tqdm(desc=name, initial=done, total=total, bar_format=form, file=sys.stdout, leave=False, mininterval=0.5)


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


class _Run:
    """All that decides how training goes on, to be saved and restored: parameters, optimiser, schedule, generators."""

    def __init__(self, name, settings, model, optimizer, schedule, generator):
        self.name, self.settings = name, settings
        self.device, self.generator = next(model.parameters()).device, generator
        self.parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def save(self, path, history):
        """Write the state to `path`, atomically."""
        state = {"name": self.name, "settings": self.settings, "history": history, "random": torch.get_rng_state()}
        state |= {"batches": self.generator.get_state()} | {k: part.state_dict() for k, part in self.parts.items()}
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        with atomic_path(path) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # what torch.save raises on a full disk
                raise OSError(str(error).splitlines()[0]) from error

    def resume(self, path):
        """Restore the state at `path`, if it is there, and return its history."""
        if not path.exists():
            return []
        state = load_checkpoint(path)
        if state.get("name", self.name) != self.name:
            raise ValueError(f"{path} holds the run {state['name']!r}, not {self.name!r}; delete it to start over")
        if state["settings"] != self.settings:
            raise ValueError(
                f"{path} holds a run with {state['settings']}, not {self.settings}; delete it to start over"
            )
        _load_parameters(self.parts["model"], state, path)
        self.parts["optimizer"].load_state_dict(state["optimizer"])
        self.parts["schedule"].load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["batches"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return state["history"]
