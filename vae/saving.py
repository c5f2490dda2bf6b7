"""A trained model in one file: `model.save(path)`, `load(path)`, and the models that come with this package.

The files are safetensors: tensors, and in the header the architecture as JSON. Nothing in them is ever executed.
"""

import hashlib
import inspect
import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from vae.checkpoint import atomic_path

WEIGHTS = Path(__file__).with_name("weights")


class Module(nn.Module):
    """An nn.Module that knows what it was made with, `arguments`, so that a file of it says how to make it again."""

    arguments: ClassVar = {}

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        if args or kwargs:  # a copy has them already
            bound = inspect.signature(cls).bind(*args, **kwargs)
            bound.apply_defaults()
            self.__dict__["arguments"] = bound.arguments
        return self

    def again(self, **changes):
        """Return a new, untrained module made with the same arguments, but for `changes`."""
        return type(self)(**self.arguments | changes)

    def save(self, path, dtype=None, **about):
        """Write parameters and architecture to `path`, atomically; `about`, plain values, is kept with them.

        `dtype`, such as torch.float16, is what parameters are stored in. Raises TypeError for an architecture that no
        file can say: one made with anything but subclasses of Module, activations, tensors and plain values.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        if dtype:
            tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        header = {"architecture": describe(self), "about": about, "checksum": _checksum(tensors)}
        content = to_bytes(tensors, {key: json.dumps(value) for key, value in header.items()})
        with atomic_path(Path(path)) as partial_path:
            partial_path.write_bytes(content)


def load(path):
    """Return the model in the file at `path`, in evaluation mode; what was kept with it is in `model.about`.

    Half precision becomes float32. A class of your own must be defined before. Raises ValueError, with the path, for a
    file that is damaged or of an unknown architecture, FileNotFoundError where there is none.
    """
    try:
        with safe_open(path, "pt") as file:
            header = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["checksum"] != _checksum(tensors):
            raise ValueError("its checksum is wrong")
        model, about = build(header["architecture"]), header["about"]
        half = (torch.float16, torch.bfloat16)
        model.load_state_dict({n: t.float() if t.dtype in half else t for n, t in tensors.items()}, assign=True)
    except FileNotFoundError:
        raise
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable model ({error}); save or fetch it again") from error
    model.about = about
    return model.eval()


def load_pretrained(name):
    """Return one of the models that come with this package, in evaluation mode. ValueError, with all names, if none."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors")))
        raise ValueError(f"no model is called {name!r}; there are {known}")
    return load(path)


def describe(value):
    """Return a module, or an argument of one, as JSON keeps it."""
    if isinstance(value, Module):
        return {"make": _name(type(value)), "with": {k: describe(v) for k, v in value.arguments.items()}}
    if isinstance(value, partial) and not value.args:
        return {"class": _name(value.func), "with": {k: describe(v) for k, v in value.keywords.items()}}
    if isinstance(value, type):
        return {"class": _name(value), "with": {}}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, (tuple, list)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a file cannot say how to make {value!r}; give modules their classes, tensors or plain values")


def build(description):
    """Return what `describe` described, parameters untrained. ValueError for a class that is not known here."""
    if isinstance(description, list):
        return tuple(build(value) for value in description)
    if not isinstance(description, dict):
        return description
    if "tensor" in description:
        return torch.tensor(description["tensor"])
    arguments = {name: build(value) for name, value in description["with"].items()}
    if "make" in description:
        return _class(description["make"])(**arguments)
    return partial(_class(description["class"]), **arguments) if arguments else _class(description["class"])


def _name(cls):
    """Return the name by which `_class` finds `cls`. TypeError if it does not."""
    if _classes().get(cls.__name__) is not cls:
        raise TypeError(
            f"a file cannot say how to make {cls!r}; derive it from vae.saving.Module, under a name of its own"
        )
    return cls.__name__


def _class(name):
    """Return the class of that name. ValueError for one that is not known here."""
    known = _classes()
    if name not in known:
        raise ValueError(f"no model, network or activation is called {name!r}; import what defines it first")
    return known[name]


def _classes():
    """Return {name: class} of PyTorch's activations and the subclasses of Module: vae's, or the one defined last."""
    activations = {name: getattr(nn, name) for name in nn.modules.activation.__all__}
    modules = sorted(_subclasses(Module), key=lambda cls: cls.__module__.startswith("vae."))
    return activations | {cls.__name__: cls for cls in modules}


def _subclasses(cls):
    return [cls, *chain.from_iterable(map(_subclasses, cls.__subclasses__()))]


def _checksum(tensors):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
