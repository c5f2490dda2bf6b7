"""The training loop: exact resume, refused checkpoints, a clear stop, one line of progress; and models on disk."""

import itertools
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close
from tqdm import tqdm

from vae.checkpoint import load_state
from vae.data import Batches, binarize
from vae.training import fit


class Killed(BaseException):
    """Stands for a kill: no handler may stop it."""


def network(width=8):
    """With a running mean, which a forward pass moves."""
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


def batches():
    """Four batches an epoch."""
    return Batches(torch.rand(20, 1), 5, torch.Generator())


def train(checkpoint=None, *, fail_at=None, seed=1, width=8, brightest=1, power=2, epochs=4, lr=0.01, **options):
    """Train for 5 steps an epoch, noise in batches, loss and evaluation, the epoch in the loss; killed at a step."""
    torch.manual_seed(seed)
    model, rows = network(width), torch.linspace(0, brightest, 60).view(20, 3)
    steps = itertools.count(-1 if checkpoint else 0)  # the first loss only tells which run it is
    batches, weight = Batches(rows, 4, torch.Generator().manual_seed(seed), transform=binarize), 0

    def before_epoch(epoch):
        nonlocal weight
        weight = epoch + 1

    def loss_fn(x):
        if next(steps) == fail_at:
            raise Killed
        return weight * (model(x + torch.randn_like(x)) - x).abs().pow(power).mean()

    def evaluate():
        return {"error": (model(torch.randn(9, 3)) ** 2).mean().item()}

    options = {"checkpoint": checkpoint, "evaluate": evaluate, "before_epoch": before_epoch} | options
    history = fit(loss_fn, model, batches, epochs=epochs, lr=lr, **options)
    return [p.detach() for p in model.parameters()], history


def assert_same_run(run, reference):
    """But for the time that it took."""
    (parameters, history), expected_history = run, reference[1]
    times = [record["cpu_seconds"] for record in history]
    assert history == [r | {"cpu_seconds": seconds} for r, seconds in zip(expected_history, times, strict=True)]
    for parameter, expected in zip(parameters, reference[0], strict=True):
        assert torch.equal(parameter, expected)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "folder" / "run.pt"


@pytest.fixture
def unfinished(checkpoint):
    """A checkpoint after 2 of 4 epochs."""
    with pytest.raises(Killed):
        train(checkpoint, fail_at=12)
    return checkpoint


@pytest.mark.parametrize("fails_at", [[3], [5], [12], [19], [7, 7, 7]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(checkpoint, fails_at):
    reference = train()
    for fail_at in fails_at:  # in steps from where it resumes: one epoch further each time
        with pytest.raises(Killed):
            train(checkpoint, fail_at=fail_at)
    assert_same_run(train(checkpoint, strict=True), reference)


def test_a_save_cut_short_leaves_the_old_checkpoint(unfinished, monkeypatch):
    before = unfinished.read_bytes()

    def cut_short(state, path):
        path.write_bytes(before[:1000])
        raise Killed

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(Killed):
        train(unfinished)
    assert unfinished.read_bytes() == before
    assert os.listdir(unfinished.parent) == [unfinished.name]


def test_a_finished_run_is_taken_as_it_is_and_says_so(checkpoint, capsys):
    reference = train(checkpoint)
    after = torch.rand(1)  # what comes after it draws the same numbers, too
    capsys.readouterr()
    again = train(checkpoint, fail_at=0)
    assert capsys.readouterr().out.startswith(f"run: 4 epochs, 4 of them taken from {checkpoint}, not trained, loss")
    assert_same_run(again, reference)
    assert again[1] == reference[1]  # its times, too
    assert_close(torch.rand(1), after)


CHANGES = [
    ({"seed": 2}, "random state"),
    ({"brightest": 0.9}, "data"),
    ({"width": 9}, "initial parameters"),
    ({"power": 4}, "loss of the first batch"),
    ({"epochs": 5}, "epochs 4 instead of 5"),
    ({"lr": 0.02}, "lr 0.01 instead of 0.02"),
    ({"one_cycle": False}, "one_cycle True instead of False"),
    ({"weight_decay": 0.1}, "weight_decay 0.0 instead of 0.1"),
    ({"bf16": True}, "bf16 False instead of True"),
    ({"name": "walk"}, "name run instead of walk"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_another_run_is_never_taken_but_kept_aside_or_refused(unfinished, change, reason, capsys):
    before, kept = unfinished.read_bytes(), unfinished.with_name("run-1.pt")
    with pytest.raises(ValueError, match=rf"{re.escape(str(unfinished))} is of another run: .*{reason}.*delete it"):
        train(unfinished, strict=True, **change)
    assert unfinished.read_bytes() == before
    assert_same_run(train(unfinished, **change), train(**change))
    told = next(line for line in capsys.readouterr().out.splitlines() if "training anew" in line)
    assert reason in told and told.endswith(f"it is kept as {kept}")
    assert kept.read_bytes() == before
    train(unfinished)
    assert unfinished.with_name("run-2.pt").exists()


def test_a_run_is_known_on_another_number_of_threads(checkpoint, capsys):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        train(checkpoint, width=500, strict=True)
    assert "4 of them taken" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.float32(0.5), np.arange(2), torch.ones(()), Path("a"), (1, None)])
def test_numbers_of_other_libraries_and_paths_are_read_back_as_plain_ones(checkpoint, value):
    options = {
        "lr": np.float64(0.01),
        "weight_decay": np.float32(0.5),
        "epochs": np.int64(2),
        "evaluate": lambda: {"seen": value},
    }
    (_, history), (_, again) = train(checkpoint, **options), train(checkpoint, **options)
    assert again == history
    assert type(history[0]["seen"]) in (float, list, str)


def test_what_no_file_can_keep_is_refused():
    with pytest.raises(TypeError, match="no file can keep <object"):
        train(evaluate=lambda: {"seen": object()})


def test_a_data_loader_trains_but_is_refused_with_a_checkpoint_before_training(checkpoint):
    loader = torch.utils.data.DataLoader(torch.rand(20, 3), 5)
    model = network()
    assert len(fit(lambda x: model(x).square().mean(), model, loader, epochs=1, lr=0.1)) == 1
    with pytest.raises(ValueError, match=r"DataLoader cannot be resumed.*Batches"):
        fit(None, model, loader, epochs=1, lr=0.1, checkpoint=checkpoint)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_malicious(path, zipped):
    state = {"history": [], "settings": {}, "model": Malicious(path.parent / "executed")}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


DAMAGES = {
    "cut short": lambda path: os.truncate(path, 1000),
    "parameters alone": lambda path: torch.save(network().state_dict(), path),
    "malicious": partial(save_malicious, zipped=True),
    "malicious, of the old format": partial(save_malicious, zipped=False),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_no_whole_checkpoint_is_refused_and_not_executed(unfinished, damage):
    damage(unfinished)
    for read in (train, load_state):
        with pytest.raises(ValueError, match=rf"(?s){re.escape(str(unfinished))} (is not|holds no) .*delete it"):
            read(unfinished)
    assert os.listdir(unfinished.parent) == [unfinished.name]


def test_a_model_that_is_no_run_is_refused(tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt is not a checkpoint of vae.training.fit"):
        train(tmp_path / "run.pt")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_training_before_the_step(bad):
    model, steps, before = nn.Linear(1, 1), itertools.count(), []

    def loss_fn(x):
        before[:] = [p.detach().clone() for p in model.parameters()]
        return model(x).square().mean() * (float(bad) if next(steps) == 6 else 1)

    with pytest.raises(FloatingPointError, match=f"tiny.*{bad} in epoch 2, step 3"):
        fit(loss_fn, model, batches(), epochs=3, lr=0.1, name="tiny")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_never_reaches_the_checkpoint(checkpoint):
    model, steps = nn.Linear(1, 1), itertools.count()

    def loss_fn(x):
        loss = model(x).square().mean()
        poison = (model.weight * 0).abs().sqrt().sum()  # zero, with a gradient of 0 · ∞
        return loss + poison if next(steps) == 8 else loss  # the last step of epoch 2, after a look at the first

    with pytest.raises(FloatingPointError, match=r"tiny.*after epoch 2"):
        fit(loss_fn, model, batches(), epochs=3, lr=0.1, checkpoint=checkpoint, name="tiny")
    state = load_state(checkpoint)
    assert len(state["history"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_history_holds_the_mean_loss_of_training_mode_and_the_evaluation_in_the_other_after_it():
    model, losses, order = nn.Linear(1, 1).eval(), [], []

    def loss_fn(x):
        order.append("training" if model.training else "a step in evaluation mode")
        loss = model(x).square().mean()
        losses.append(loss.item())
        return loss

    def evaluate():
        order.append("an evaluation in training mode" if model.training else "evaluation")
        return {"bias": model.bias.item()}

    options = {"before_epoch": lambda epoch: order.append(f"before {epoch}"), "evaluate": evaluate}
    history = fit(loss_fn, model, batches(), epochs=2, lr=0.1, **options)
    for epoch, record in enumerate(history):
        assert record["loss"] == pytest.approx(sum(losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-12)
    assert history[-1]["bias"] == model.bias.item() != history[0]["bias"]
    assert order == ["before 0", *4 * ["training"], "evaluation", "before 1", *4 * ["training"], "evaluation"]
    assert not model.training


def test_the_rate_rises_to_its_peak_then_falls_to_its_least_and_the_momentum_inversely():
    """In exactly so many steps as there are: an initial rate of 1/25 of the peak, a last one of 1/10,000 of that."""
    groups = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: groups.append(dict(optimizer.param_groups[0])))
    train(lr=0.01)
    hook.remove()
    rates, momenta = [group["lr"] for group in groups], [group["betas"][0] for group in groups]
    peak = rates.index(max(rates))
    assert len(rates) == 20
    assert 0 < peak < 19
    assert (rates[0], rates[peak], rates[-1]) == pytest.approx((0.01 / 25, 0.01, 0.01 / 25 / 1e4))
    assert sorted(rates[: peak + 1]) == rates[: peak + 1]
    assert sorted(rates[peak:], reverse=True) == rates[peak:]
    assert (momenta[0], momenta[peak], momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))


def test_at_a_constant_rate_a_short_run_is_the_beginning_of_a_long_one():
    _, history = train(epochs=2, one_cycle=False)
    _, longer = train(epochs=4, one_cycle=False)
    assert [epoch["loss"] for epoch in longer[:2]] == [epoch["loss"] for epoch in history]
    assert train(epochs=2)[1][0]["loss"] != history[0]["loss"]


def test_cpu_seconds_are_those_of_an_epochs_training_alone(monkeypatch):
    """On a clock by which a step takes a second, and an evaluation a minute."""
    model, clock = nn.Linear(1, 1), 0
    monkeypatch.setattr("vae.training.time.process_time", lambda: clock)

    def take(seconds):
        nonlocal clock
        clock += seconds
        return {}

    def loss_fn(x):
        take(1)
        return model(x).square().mean()

    history = fit(loss_fn, model, batches(), epochs=3, lr=0.01, evaluate=lambda: take(60))
    assert [record["cpu_seconds"] for record in history] == [4, 4, 4]


def test_progress_counts_from_where_a_run_resumes_and_ends_in_one_line_without_times(unfinished, capsys, monkeypatch):
    every_step = {"mininterval": 0, "miniters": 1, "disable": False}  # redraw then, not twice a second
    monkeypatch.setattr("vae.training.tqdm", lambda **options: tqdm(**options | every_step))
    capsys.readouterr()
    _, history = train(unfinished)
    out = capsys.readouterr().out
    assert [int(percent) for percent in re.findall(r"(\d+) %", out)] == list(range(50, 101, 5))
    assert "epoch 3/4" in out
    assert " left" in out
    *_, erased, last = out.split("\r")
    taken = f"2 of them taken from {unfinished}, not trained"
    assert (erased.strip(), last) == ("", f"run: 4 epochs, {taken}, loss {history[-1]['loss']:.2f}\n")


@pytest.mark.parametrize(("seconds", "lines"), [(1, 1), (16, 3), (31, 5)])
def test_a_file_gets_at_most_a_line_an_epoch_or_every_half_minute(seconds, lines, capsys, monkeypatch):
    clock = itertools.count(step=seconds)  # asked before training and after each epoch
    monkeypatch.setattr("vae.training.time.monotonic", lambda: next(clock))
    train()
    out = capsys.readouterr().out
    assert "\r" not in out and len(out.splitlines()) == lines


PROGRAM = """
import hashlib, io, torch
from vae import VAE, Batches, BernoulliDecoder, Encoder, binarize, fit, plotting

for threads in (1, 2):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vae, png = VAE(Encoder((1, 28, 28), 2, [200]), BernoulliDecoder(2, (1, 28, 28), [200])), io.BytesIO()
    batches = Batches(torch.rand(1000, 1, 28, 28), 200, torch.Generator().manual_seed(0), binarize)
    fit(lambda x: -vae.elbo(x).mean(), vae, batches, epochs=2, lr=1e-3)
    plotting.image_grid(vae.decoder(plotting.latent_grid(4)).mean.detach(), columns=4).savefig(png)
    bits = b"".join(p.detach().numpy().tobytes() for p in vae.parameters())
    print(threads, hashlib.md5(bits).hexdigest(), hashlib.md5(png.getvalue()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bits_and_figures_in_two_programs_with_one_thread_and_with_two(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "MPLBACKEND": "Agg",
        "OMP_WAIT_POLICY": "passive",
    }
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
    programs = [subprocess.Popen([sys.executable, "-c", PROGRAM], **options) for _ in range(2)]
    first, second = (re.findall(r"^\d \w{32} \w{32}$", p.communicate(timeout=300)[0], re.MULTILINE) for p in programs)
    assert len(first) == 2
    assert first == second
