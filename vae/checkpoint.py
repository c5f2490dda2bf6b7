"""Files that a kill leaves whole, and runs that resume from them bit for bit. Nothing in them is ever executed."""

import os
import zipfile
from contextlib import contextmanager, suppress
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


class Run:
    """All that decides how training goes on, to be saved and restored: parameters, optimizer, schedule, generators.

    `settings`, plain values, are whatever makes it this run and not another.
    """

    def __init__(self, name, settings, model, optimizer, schedule, generator):
        self.name, self.settings = name, settings
        self.device, self.generator = next(model.parameters()).device, generator
        self.model, self.parts = model, {"optimizer": optimizer, "schedule": schedule}

    def save(self, path, history):
        """Write the state to `path`, atomically."""
        state = {"name": self.name, "settings": self.settings, "history": history, "random": torch.get_rng_state()}
        state |= {"model": self.model.state_dict(), "batches": self.generator.get_state()}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        save_state(state, path)

    def resume(self, path):
        """Restore the state at `path`, if it is there, and return its history. ValueError for that of another run."""
        if not Path(path).exists():
            return []
        state = load_state(path)
        if not {"name", "settings", "history", *self.parts} <= state.keys():
            raise ValueError(f"{path} is not a checkpoint of vae.training.fit; delete it or choose another path")
        if state["name"] != self.name:
            raise ValueError(f"{path} holds the run {state['name']!r}, not {self.name!r}; delete it to start over")
        if state["settings"] != self.settings:
            raise ValueError(
                f"{path} holds a run with {state['settings']}, not {self.settings}; delete it to start over"
            )
        if ("random_cuda" in state) != (self.device.type == "cuda"):
            raise ValueError(f"{path} is not of a run on {self.device.type}; go on where it was saved, or delete it")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"{path} was saved from another architecture: {error}") from error
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["batches"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return state["history"]
