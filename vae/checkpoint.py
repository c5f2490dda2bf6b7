"""Files that a kill leaves whole, and runs that resume from them bit for bit. Nothing in them is ever executed."""

import hashlib
import json
import os
import zipfile
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import torch


@contextmanager
def atomic_path(path):
    """Yield a path to write to; it takes the place of `path` when the block ends, and is removed if the block fails.

    Raises OSError, with what to do, where the disk is full or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            f"{path} could not be written and is as it was ({error}); free some space, or make its folder writable, "
            "and run again"
        ) from error
    finally:
        with suppress(OSError):  # there is none, or the whole disk is read-only
            partial.unlink()


def set_aside(path):
    """Give the file at `path` a name that is free, and return that."""
    path = Path(path)
    free = next(p for n in count(1) if not (p := path.with_stem(f"{path.stem}-{n}")).exists())
    return path.rename(free)


def plain_values(value):
    """Return `value` as a file keeps it: numbers of NumPy and PyTorch as Python's, paths as text, tuples as lists.

    TypeError for what is neither number nor text, nor a dict or a list of them.
    """

    def convert(other):
        if hasattr(other, "tolist"):
            return other.tolist()
        if isinstance(other, Path):
            return str(other)
        raise TypeError(f"no file can keep {other!r}; give numbers or text, or dicts or lists of them")

    return json.loads(json.dumps(value, default=convert))


def checksum(tensors):
    """Return a SHA-256 of a dict of tensors, their names, kinds and shapes included: a string."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(state, path):
    """Write a dict of tensors and plain values to `path`, atomically."""
    with atomic_path(Path(path)) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # what torch.save raises on a full disk
            raise OSError(str(error).splitlines()[0]) from error


def load_state(path):
    """Return the dict that `save_state` wrote to `path`, with a "model". ValueError if it is no such file."""
    try:
        with open(path, "rb") as file:
            if zipfile.ZipFile(file).testzip():
                raise ValueError("its checksum is wrong")  # which torch.load does not look at
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} is not a readable checkpoint; delete it to start over") from error
    if not (isinstance(state, dict) and isinstance(state.get("model"), dict)):
        raise ValueError(f"{path} holds no model; delete it or choose another path")
    return state


class OtherRunError(ValueError):
    """A checkpoint is of another run than the one that would go on from it."""


class Run:
    """All that decides how training goes on, to be saved and restored: parameters, optimizer, schedule, generators.

    `identity`, a dict of plain values, is what makes it this run and not another.
    """

    def __init__(self, name, identity, model, optimizer, schedule, generator):
        self.name, self.identity = name, identity
        self.device, self.generator = next(model.parameters()).device, generator
        self.model, self.parts = model, {"optimizer": optimizer, "schedule": schedule}

    def save(self, path, history):
        """Write the state to `path`, atomically."""
        state = {"identity": self.identity, "history": history, "random": torch.get_rng_state()}
        state |= {"model": self.model.state_dict(), "batches": self.generator.get_state()}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        save_state(state, path)

    def resume(self, path):
        """Restore the state at `path`, if there is one, and return its history. OtherRunError if of another run."""
        if not Path(path).exists():
            return []
        state = load_state(path)
        if not {"identity", "history", *self.parts} <= state.keys():
            raise ValueError(f"{path} is not a checkpoint of vae.training.fit; delete it or choose another path")
        old, new = state["identity"], self.identity
        if different := [key for key in old | new if old.get(key) != new.get(key)]:
            reasons = ", ".join(f"{key} {old.get(key)} instead of {new.get(key)}" for key in different)
            raise OtherRunError(f"{path} is of another run: {reasons}")
        self.model.load_state_dict(state["model"])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["batches"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return state["history"]
