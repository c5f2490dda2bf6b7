"""Files that a kill leaves whole, and runs that resume from them bit for bit. Nothing in them is ever executed."""

import copy
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


def checksum(tensors, *texts):
    """Return a SHA-256 of a dict of tensors, their names, kinds and shapes included, and of texts: a string."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def load_state(path):
    """Return the dict in the checkpoint at `path`. ValueError if it is no such file."""
    try:
        with open(path, "rb") as file:
            if zipfile.ZipFile(file).testzip():
                raise ValueError("its checksum is wrong")  # which torch.load does not look at
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        if not {"identity", "history", "model"} <= state.keys():
            raise ValueError("it holds something else")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        advice = "delete it to start over, or choose another path"
        raise ValueError(f"{path} is not a checkpoint of vae.training.fit that can be read; {advice}") from error
    return state


class OtherRunError(ValueError):
    """A checkpoint is of another run than the one that would go on from it."""


class Run:
    """All that decides how training goes on, to be saved and restored: parameters, optimizer, schedule, generators.

    `identity`, a dict of plain values, makes it this run and not another: its settings, and what `identify` adds.
    """

    def __init__(self, settings, model, optimizer, schedule, generator):
        self.name, self.identity = settings["name"], settings
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.device, self.generator = next(model.parameters()).device, generator
        self.parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def identify(self, loss_fn, batches, evaluate):
        """Add to the identity what the run starts from, and what it computes first; ValueError for other batches.

        That is the data, parameters, generators, loss and gradient of the first batch, and the first evaluation.
        """
        if not hasattr(batches, "tensors"):
            raise ValueError(
                f"a run on a {type(batches).__name__} cannot be resumed: leave its folder out, or give it Batches or "
                "SemiSupervisedBatches of vae.data"
            )
        start, threads = copy.deepcopy(self.state()), torch.get_num_threads()  # a pass may move a running mean, too
        parameters = {f"{name}, learns: {p.requires_grad}": p.detach() for name, p in self.model.named_parameters()}
        first = {
            "device": self.device.type,
            "data": checksum(batches.tensors)[:8],
            "initial parameters": checksum(parameters | dict(self.model.named_buffers()))[:8],
            "random state": checksum(start["random"])[:8],
        }
        torch.set_num_threads(1)  # with more of them the loss would be rounded otherwise
        self.optimizer.zero_grad()
        try:
            loss = loss_fn(next(iter(batches)))
            loss.backward()
            gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
            gradient = checksum(gradients)[:8]
            if self.device.type != "cpu":  # where the order of a sum, and so its last digits, may vary
                gradient = f"{torch.stack([g.norm() for g in gradients.values()]).norm():.3g}"
            first |= {"loss of the first batch": loss.item(), "its gradient": gradient}
            self.model.eval()
            with torch.no_grad():
                first["evaluation before training"] = evaluate()
        finally:
            torch.set_num_threads(threads)
            self.optimizer.zero_grad()
            self.restore(start)
        self.identity = plain_values(self.identity | first)

    def state(self):
        """Return what the next step depends on, besides the data."""
        random = {"cpu": torch.get_rng_state(), "batches": self.generator.get_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"random": random} | {name: part.state_dict() for name, part in self.parts.items()}

    def restore(self, state):
        """Put back what `state` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"]["cpu"])
        self.generator.set_state(state["random"]["batches"])
        if "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def save(self, path, history):
        """Write the state to `path`, atomically."""
        with atomic_path(path) as partial:
            try:
                torch.save({"identity": self.identity, "history": history} | self.state(), partial)
            except RuntimeError as error:  # what torch.save raises on a full disk
                raise OSError(str(error).splitlines()[0]) from error

    def resume(self, path, strict):
        """Restore the state at `path`, and return its history, which is empty if there is none.

        A file of another run gets another name, and a line says why; if `strict`, it raises OtherRunError.
        """
        if not path.exists():
            return []
        state = load_state(path)
        old, new = state["identity"], self.identity
        if different := [key for key in old | new if repr(old.get(key)) != repr(new.get(key))]:  # NaN is NaN here
            reasons = ", ".join(f"{key} {old.get(key)} instead of {new.get(key)}" for key in different)
            found = f"{path} is of another run: {reasons}"
            if strict:
                raise OtherRunError(f"{found}; delete it to start over")
            numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
            kept = next(candidate for candidate in numbered if not candidate.exists())
            path.rename(kept)
            print(f"{self.name}: training anew, for {found}; it is kept as {kept}", flush=True)
            return []
        self.restore(state)
        return state["history"]
