"""A trained model in one file: `model.save(path)`, `load(path)`, and the models that come with this package.

The files are safetensors: tensors, and in the header the architecture as JSON. Nothing in them is ever executed.
"""

import inspect
import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from vae.checkpoint import atomic_path, checksum, plain_values

WEIGHTS = Path(__file__).with_name("weights")


class Module(nn.Module):
    """An nn.Module that knows what it was made with, `arguments`, so that a file of it says how to make it again."""

    arguments: ClassVar = {}

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        if args or kwargs:  # a copy has them already
            # of __init__: some Pythons, 3.11.2 among them, take the class's from __new__
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            named = dict(zip(bound.arguments, bound.args, strict=False)) | bound.kwargs  # what **options hold, too
            self.__dict__["arguments"] = {name: _plain(value) for name, value in named.items() if value is not self}
        return self

    def extra_repr(self):
        """Show what the module was made with, in today's values: a part of what `print` shows."""
        now = {name: _plain(getattr(self, name, value)) for name, value in self.arguments.items()}
        return ", ".join(f"{name}={value!r}" for name, value in now.items() if not isinstance(value, nn.Module))

    def save(self, path, dtype=None, **about):
        """Write parameters and architecture to `path`, atomically; `about`, plain values, is kept with them.

        `dtype`, such as torch.float16, is what parameters are stored in. Raises TypeError, and writes nothing, unless
        `load` would give this model: made with subclasses of Module, activations, tensors and plain values, and not
        changed since.
        """
        tensors = {name: t.cpu().contiguous().clone() for name, t in self.state_dict().items()}
        if dtype:
            tensors |= {name: _stored(name, t, dtype) for name, t in tensors.items() if t.is_floating_point()}
        architecture, about = json.dumps(describe(self)), json.dumps(plain_values(about))
        _check_file(self, architecture, tensors)
        texts = {"architecture": architecture, "about": about, "checksum": checksum(tensors, architecture, about)}
        content = to_bytes(tensors, texts)
        with atomic_path(Path(path)) as partial_path:
            partial_path.write_bytes(content)


def _stored(name, tensor, dtype):
    """Return the tensor in `dtype`. TypeError if that is none for parameters, or too narrow for these."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"dtype = {dtype} must be torch.float16, bfloat16, float32 or float64")
    stored = tensor.to(dtype)
    if stored.isfinite().sum() < tensor.isfinite().sum():
        raise TypeError(f"{name} holds {tensor.abs().max():g}, too large for {dtype}; take torch.bfloat16 or float32")
    return stored


def load(path):
    """Return the model in the file at `path`, in evaluation mode; what was kept with it is in `model.about`.

    Half precision becomes float32. A class of your own must be defined before. Raises ValueError, with the path, for a
    file that is damaged or of an unknown architecture, FileNotFoundError where there is none.
    """
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if texts["checksum"] != checksum(tensors, texts["architecture"], texts["about"]):
            raise ValueError("its checksum is wrong")
        model, about = build(json.loads(texts["architecture"])), json.loads(texts["about"])
        half = (torch.float16, torch.bfloat16)
        model.load_state_dict({n: t.float() if t.dtype in half else t for n, t in tensors.items()}, assign=True)
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
    value = _plain(value)
    if isinstance(value, Module):
        return {"make": _name(type(value)), "with": {k: describe(v) for k, v in value.arguments.items()}}
    if isinstance(value, partial) and not value.args:
        return {"class": _name(value.func), "with": {k: describe(v) for k, v in value.keywords.items()}}
    if isinstance(value, type):
        return {"class": _name(value), "with": {}}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    what = " ".join(repr(value).split())[:100]
    raise TypeError(f"a file cannot say how to make {what}; give modules their classes, tensors or plain values")


def _plain(value):
    """Return a copy of an argument in types of Python and PyTorch; modules as they are."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.tensor(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value.item() if isinstance(value, np.generic) else value


def build(description):
    """Return what `describe` described, parameters untrained. ValueError for a class that is not known here."""
    if isinstance(description, list):
        return tuple(build(value) for value in description)
    if not isinstance(description, dict):
        return description
    if "tensor" in description:
        return torch.tensor(description["tensor"], dtype=getattr(torch, description.get("dtype", ""), None))
    name, known = description.get("make") or description["class"], _classes()
    if name not in known:
        raise ValueError(f"no model, network or activation is called {name!r}; import what defines it first")
    arguments = {key: build(value) for key, value in description["with"].items()}
    if "make" in description:
        return known[name](**arguments)
    return partial(known[name], **arguments) if arguments else known[name]


def _name(cls):
    """Return the name by which `build` finds `cls`, or what a notebook's cell defined anew. TypeError if neither."""
    found = _classes().get(cls.__name__)
    if found is not cls and ("<locals>" in cls.__qualname__ or repr(found) != repr(cls)):
        raise TypeError(f"no file can make {cls!r}; derive it from vae.saving.Module, under a name of its own")
    return cls.__name__


def _classes():
    """Return {name: class} of PyTorch's activations and the subclasses of Module: vae's, or the one defined last."""
    activations = {name: getattr(nn, name) for name in nn.modules.activation.__all__}
    modules = sorted(_subclasses(Module), key=lambda cls: cls.__module__.startswith("vae."))
    return {cls.__name__: cls for cls in modules} | activations


def _subclasses(cls):
    return [cls, *chain.from_iterable(map(_subclasses, cls.__subclasses__()))]


def _difference(model, loaded):
    """Return the first difference between two models, but for their tensors, in words; None if there is none.

    Of each part: kind, what `print` shows of it, plain attributes, code, hooks.
    """

    def kind(part):
        return f"{type(part).__qualname__}({part.extra_repr()})" if part is not None else "nothing"

    parts, others = dict(model.named_modules()), dict(loaded.named_modules())
    for name in parts | others:
        part, other, where = parts.get(name), others.get(name), name or "it"
        if kind(part) != kind(other):
            return f"{where} is {kind(part)}, but a file would make it {kind(other)}"
        if getattr(type(part).forward, "__code__", None) != getattr(type(other).forward, "__code__", None):
            return f"{where} is of a class that was changed since"
        if "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
            return f"{where} has a hook or a forward of its own, which no file can keep"
        for key, value in vars(part).items():
            plain = isinstance(value, (bool, int, float, str, tuple)) and not key.startswith("_") and key != "training"
            if plain and value != getattr(other, key, value):
                return f"{where}.{key} is {value!r}, but a file would make it {getattr(other, key)!r}"
    return None


def _check_file(model, architecture, tensors):
    """Raise TypeError, with the first difference and what to do, unless a file of these would load as `model`."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            loaded = build(json.loads(architecture))
    except Exception as error:
        advice = "give parameters names, in place of * and /, and let them be tuples, tensors or plain values"
        raise TypeError(f"a file cannot make {type(model)!r} again ({error}): {advice}") from error
    if difference := _difference(model, loaded):
        raise TypeError(f"{difference}: put that back, or make the model anew with it")
    names = {}
    for name, tensor in model.state_dict().items():
        address = tensor.data_ptr() or name  # an empty tensor has none
        if address in names:
            raise TypeError(f"{names[address]} and {name} are one tensor, which no file can say: give each its own")
        names[address] = name
    try:
        loaded.load_state_dict(tensors)
    except RuntimeError as error:
        raise TypeError(f"no file can keep these tensors: {' '.join(str(error).split())}") from error
