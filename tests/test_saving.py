"""Models in one file: what comes back, from what, and what is refused."""

import json
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributions import Bernoulli, Independent
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from experiments.m1 import DECODERS
from experiments.weights import measure
from vae import saving
from vae.checkpoint import checksum
from vae.conv import ConvNet, DeconvNet
from vae.datasets import load_mnist
from vae.gaussian import DiagonalGaussianDecoder, SharedGaussianDecoder
from vae.models import VAE, AutoEncoder, ConditionalVAE
from vae.networks import MLP, BernoulliDecoder, Encoder
from vae.recipes import build_m1, build_m1m2, build_m2
from vae.saving import load, load_pretrained

SHAPE, IMAGES = (1, 6, 6), torch.rand(20, 1, 6, 6)
SILU = partial(MLP, activation=nn.SiLU)


class Sharper(BernoulliDecoder):
    """A decoder of one's own."""

    def forward(self, z, y=None):
        pixels = Bernoulli(logits=2 * self.network(z, y), validate_args=False)
        return Independent(pixels, len(self.x_shape), validate_args=False)


class WithOptions(Sharper):
    """One that hands its options on."""

    def __init__(self, z_dim, x_shape, hidden_dims, **options):
        super().__init__(z_dim, x_shape, hidden_dims, **options)


def m1(network=MLP, decoder=BernoulliDecoder):
    torch.manual_seed(0)
    return build_m1(SHAPE, 3, (8, 7), decoder, network)


def m2(**options):
    return build_m2(SHAPE, 4, 3, (8,), classifier_dims=(9,), **options)


def m1m2():
    first = m1(SILU)
    first.encoder.network.output.weight.data *= 30
    first.encoder.network.output.weight.data[1] = 0  # the second of three latents says nothing
    return build_m1m2(first, IMAGES, 4, 2, (5,), init_scale=0.5)


def m1_whose_widths_are_reversed(dims):
    model = VAE(Encoder(SHAPE, 3, dims), BernoulliDecoder(3, SHAPE, dims))
    dims.reverse()
    return model


def m1_with_another_decoder_like_it():
    model = m1()
    model.decoder = BernoulliDecoder(3, SHAPE, (7, 8))
    return model


def m1_of_a_cell_run_twice():
    first, second = (type("OfACell", (Sharper,), {"__module__": "__main__"}) for _ in range(2))
    model = m1(decoder=first)
    model.again_defined = second  # kept alive, as a notebook's name would
    return model


MODELS = {
    "an auto-encoder": lambda: AutoEncoder(MLP(SHAPE, (8,), 2), BernoulliDecoder(2, SHAPE, (7,))),
    "M1, SiLU": partial(m1, SILU),
    "M1, a decoder of one's own": lambda: m1(decoder=Sharper),
    "M1, widths reversed by the caller": lambda: m1_whose_widths_are_reversed([np.int64(9), 8]),
    "M1, another decoder of the same kind": m1_with_another_decoder_like_it,
    "M1, a decoder of a cell that was run again": m1_of_a_cell_run_twice,
    "M1, options": partial(m1, SILU, WithOptions),
    "M2, a prior of numpy": partial(m2, label_prior=np.array([0.1, 0.2, 0.3, 0.4])),
    "M2, convolutional": partial(m2, network=partial(ConvNet, channels=(2, 3)), decoder_network=DeconvNet),
    "M2, a classifier with M1's layers": lambda: m2(m1=m1(SILU)),
    "M2 without a classifier": lambda: ConditionalVAE(m2().encoder, m2().decoder, 4),
    "M1+M2": m1m2,
    "M1, sizes of numpy": lambda: VAE(Encoder(np.array(SHAPE), np.int64(3), [8]), BernoulliDecoder(3, SHAPE, [7])),
    "M1, limits in a list": partial(m1, decoder=partial(DiagonalGaussianDecoder, scale_limits=[0.1, 0.2])),
    "M1, a scale of numpy": partial(m1, decoder=partial(SharedGaussianDecoder, fixed_scale=np.float32(0.3))),
}
MODELS |= {f"M1, {name}": partial(m1, decoder=decoder) for name, decoder in DECODERS.items()}


def outputs(model):
    """Something that every part of the model takes part in."""
    torch.manual_seed(0)
    calls = {"reconstruct": [IMAGES], "elbo": [IMAGES], "labeled_elbo": [IMAGES, torch.arange(20) % 4]}
    calls |= {"unlabeled_elbo": [IMAGES], "label_posterior": [IMAGES]}
    calls |= {} if isinstance(model, AutoEncoder) else {"sample": [5]}
    with torch.no_grad():
        found = [getattr(model.eval(), name)(*arguments) for name, arguments in calls.items() if hasattr(model, name)]
    return [getattr(value, "logits", value) for value in found]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_comes_back_with_its_architecture_and_what_is_known_of_it(make, tmp_path):
    model, path = make(), tmp_path / "new" / "model.safetensors"
    state = torch.get_rng_state()
    model.save(path, test_error=3.5, settings={"epochs": 9, "data": None})
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    again = load(path)
    assert type(again) is type(model)
    assert not any(module.training for module in again.modules())
    assert_close(outputs(again), outputs(model), rtol=0, atol=0)
    assert again.about == {"test_error": 3.5, "settings": {"epochs": 9, "data": None}}
    assert all(p.requires_grad for p in again.parameters())
    again.save(path)  # what was loaded can be saved
    assert_close(outputs(load(path)), outputs(model), rtol=0, atol=0)


def test_half_precision_is_rounded_and_comes_back_as_float32_and_double_as_it_is(tmp_path):
    path, model = tmp_path / "model.safetensors", m1m2()
    model.save(path, dtype=torch.float16)
    for old, new in zip(model.state_dict().values(), load(path).state_dict().values(), strict=True):
        assert new.dtype == old.dtype
        assert torch.equal(new, old.half().float() if old.is_floating_point() else old)
    m1().double().save(path)
    assert {p.dtype for p in load(path).parameters()} == {torch.float64}
    nn.init.constant_(model.m1.decoder.network.output.bias, 1e5)
    for dtype, what in (
        (torch.float16, "m1.decoder.network.output.bias holds 100000, too large"),
        (torch.int8, "must be"),
    ):
        with pytest.raises(TypeError, match=what):
            model.save(path, dtype=dtype)


def test_an_architecture_that_no_file_can_say_is_refused_before_anything_is_written(tmp_path):
    for factory in (lambda *sizes: MLP(*sizes), partial(MLP, activation=lambda: nn.ReLU())):
        with pytest.raises(TypeError, match=r"cannot say how to make <function.*plain values"):
            m1(factory).save(tmp_path / "model")

    class Plain(nn.Module):
        def __init__(self, *sizes):
            super().__init__()

    for network in (Plain, type("MLP", (MLP,), {})):
        with pytest.raises(TypeError, match=r"derive it from vae.saving.Module, under a name of its own"):
            Encoder(SHAPE, 3, [5], network=network).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


HIDDEN, BACK = "encoder.network.hidden", "put that back, or make the model anew with it"
CHANGES = [  # what is set, to what, and what the error says
    ("decoder", lambda m: torch.compile(m.decoder), r"decoder is OptimizedModule\(.* it DiagonalGaussianDecoder\("),
    ("encoder", lambda m: Encoder(SHAPE, 3, [9, 7]), r"encoder is .*hidden_dims=\(9, 7\).* it .*hidden_dims=\(8, 7\)"),
    (
        "encoder.network.input",
        lambda m: weight_norm(m.encoder.network.input),
        "input is ParametrizedLinear.* it Linear",
    ),
    (f"{HIDDEN}.0", lambda m: nn.Tanh(), rf"{HIDDEN}.0 is Tanh\(\), but a file would make it LeakyReLU"),
    (f"{HIDDEN}.0", lambda m: nn.LeakyReLU(0.3), f"{HIDDEN}.0 is .*slope=0.3.* it .*slope=0.01"),
    (f"{HIDDEN}.3", lambda m: nn.Dropout(), f"{HIDDEN}.3 is Dropout.* it nothing"),
    ("decoder.scale_limits", lambda m: [1, 2], r"decoder is .*scale_limits=\(1, 2\).* it .*scale_limits=None"),
    ("prior_mean", lambda m: torch.ones(4), r"these tensors: .* prior_mean:.*shape torch.Size\(\[4\]\)"),
    ("more", lambda m: nn.Parameter(torch.ones(4)), 'these tensors: .* "more"'),
    ("decoder.forward", lambda m: m.decoder.forward, "decoder has a hook or a forward of its own"),
    ("decoder.network.input.bias", lambda m: m.encoder.network.hidden[1].bias, f"{HIDDEN}.1.bias .*are one tensor"),
]


@pytest.mark.parametrize(("place", "new", "what"), CHANGES, ids=[place for place, *_ in CHANGES])
def test_what_is_not_as_it_was_made_is_refused_and_the_old_file_stays(place, new, what, tmp_path):
    model, path = m1(partial(MLP, activation=nn.LeakyReLU), DiagonalGaussianDecoder), tmp_path / "model.safetensors"
    model.save(path)
    content, (owner, _, name) = path.read_bytes(), place.rpartition(".")
    setattr(model.get_submodule(owner), name, new(model))
    with pytest.raises(TypeError, match=what if "tensor" in what else f"{what}.*: {BACK}$"):
        model.save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_class_that_takes_arguments_by_their_place_is_told_to_name_them(tmp_path):
    class ByPlace(MLP):
        def __init__(self, *sizes):
            super().__init__(*sizes)

    with pytest.raises(TypeError, match=r"ByPlace.*: give parameters names, in place of \* and /"):
        ByPlace(4, (3,), 2).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_class_of_ones_own_may_have_no_arguments_and_one_that_is_named_as_ours_takes_no_place(tmp_path):
    class Nothing(saving.Module):
        """Made of nothing."""

    class Encoder(VAE):
        """Not vae's."""

    Nothing().save(tmp_path / "nothing")
    assert type(load(tmp_path / "nothing")) is Nothing

    class ReLU(saving.Module):
        """Not PyTorch's."""

    m1().save(tmp_path / "m1")
    assert type(load(tmp_path / "m1").encoder) is not Encoder
    assert type(load(tmp_path / "m1").encoder.network.hidden[0]) is nn.ReLU


def test_a_damaged_file_is_refused_with_its_path_and_no_flipped_bit_goes_unseen(tmp_path):
    path, rng = tmp_path / "model.safetensors", random.Random(0)
    m1().save(path, scaling=[float(n) for n in range(100)])
    content = path.read_bytes()
    damages = [b"", content[:100], content[:-1], content + b"1", b"\x80\x02}q\x00.", b"{}"]
    for place in [8 * len(content) - 1, *(rng.randrange(8 * len(content)) for _ in range(200))]:
        damages.append(
            content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]
        )
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))} is not a readable model .*again"):
            load(path)


def test_nothing_but_modules_and_activations_is_made(tmp_path):
    path = tmp_path / "model.safetensors"
    m1().save(path)
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in ("system", "Unfold", "Linear", "Strange"):
        architecture = json.loads(header["architecture"])
        architecture["with"]["encoder"]["with"]["network"] = {"class": name, "with": {}}
        header["architecture"] = json.dumps(architecture)
        header["checksum"] = checksum(tensors, header["architecture"], header["about"])
        save_file(tensors, path, header)
        with pytest.raises(ValueError, match=f"called '{name}'; import what defines it"):
            load(path)
    save_file(tensors, path)  # without a header of ours
    with pytest.raises(ValueError, match="is not a readable model"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


NAMES = sorted(path.stem for path in saving.WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.full_mnist
def test_a_pretrained_model_repeats_what_its_file_says_of_the_test_images(name):
    model, mnist = load_pretrained(name), load_mnist()
    [(what, value)] = measure(model, mnist).items()
    assert value == pytest.approx(model.about[what], abs=0.1 if what == "test_bound" else 0)
    assert model.about["data_checksum"] == mnist.checksum
    assert model.about["license"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no model is called 'm3'; there are " + ", ".join(NAMES)):
        load_pretrained("m3")
