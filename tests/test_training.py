"""The training loop: exact resume, refused checkpoints, a clear stop, one line of progress."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

from vae.checkpoint import load_state
from vae.data import Batches, binarize
from vae.training import Recipe, fit

STEEP = Recipe(lr=0.01)


class Killed(BaseException):
    """Stands for a kill: no handler may stop it."""


def network(width=8):
    """With a running mean, which a forward pass moves."""
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


def batches():
    """Four batches an epoch."""
    return Batches(torch.rand(20, 1), 5, torch.Generator())


def train(
    folder=None, *, fail_at=None, seed=1, width=8, brightest=1, power=2, slope=1, epochs=4, recipe=STEEP, **options
):
    """Train for 5 steps an epoch, noise in batches, loss and evaluation, the epoch in the loss; killed at a step."""
    torch.manual_seed(seed)
    model, rows = network(width), torch.linspace(0, brightest, 60).view(20, 3)
    steps = itertools.count(-1 if folder else 0)  # the first loss only tells which run it is
    batches, weight = Batches(rows, 4, torch.Generator().manual_seed(seed), transform=binarize), 0

    def before_epoch(epoch):
        nonlocal weight
        weight = epoch + 1

    def loss_fn(x):
        if next(steps) == fail_at:
            raise Killed
        loss = weight * (model(x + torch.randn_like(x)) - x).abs().pow(power).mean()
        return loss + (slope - 1) * (loss - loss.detach())

    def evaluate():
        return {"error": (model(torch.randn(9, 3)) ** 2).mean().item()}

    options = {"folder": folder, "evaluate": evaluate, "before_epoch": before_epoch} | options
    history = fit(loss_fn, model, batches, recipe, epochs=epochs, **options)
    return [p.detach() for p in model.parameters()], history


def assert_same_run(run, reference):
    """But for the time that it took."""
    (parameters, history), (expected, expected_history) = run, reference
    assert [r | {"cpu_seconds": 0} for r in history] == [r | {"cpu_seconds": 0} for r in expected_history]
    assert_close(parameters, expected, rtol=0, atol=0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


@pytest.fixture
def unfinished(folder):
    """The file of a run that was killed after 2 of 4 epochs."""
    with pytest.raises(Killed):
        train(folder, fail_at=12)
    return folder / "run.pt"


@pytest.mark.parametrize("fails_at", [[3], [5], [12], [19], [7, 7, 7]])
@pytest.mark.parametrize("schedule", ["one cycle", "falling"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder, fails_at, schedule):
    recipe = Recipe(lr=0.01, schedule=schedule)
    reference = train(recipe=recipe)
    for fail_at in fails_at:  # in steps from where it resumes: one epoch further each time
        with pytest.raises(Killed):
            train(folder, fail_at=fail_at, recipe=recipe)
    assert_same_run(train(folder, strict=True, recipe=recipe), reference)


def test_a_save_cut_short_leaves_the_old_checkpoint(unfinished, monkeypatch):
    before = unfinished.read_bytes()

    def cut_short(state, path):
        path.write_bytes(before[:1000])
        raise Killed

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(Killed):
        train(unfinished.parent)
    assert unfinished.read_bytes() == before
    assert os.listdir(unfinished.parent) == [unfinished.name]


def test_a_finished_run_is_taken_as_it_is_and_says_so_even_when_it_is_to_be_silent(folder, capsys):
    reference = train(folder)
    after = torch.rand(1)  # what comes after it draws the same numbers, too
    capsys.readouterr()
    again = train(folder, fail_at=0, verbose=False)
    assert capsys.readouterr().out.startswith(
        f"run: 4 epochs, 4 of them taken from {folder / 'run.pt'}, not trained, l"
    )
    assert_same_run(again, reference)
    assert again[1] == reference[1]  # its times, too
    assert_close(torch.rand(1), after)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 2}, "random state"),
        ({"brightest": 0.9}, "data"),
        ({"width": 9}, "initial parameters"),
        ({"power": 4}, "loss of the first batch"),
        ({"slope": 2}, "its gradient"),  # of a loss of the same value
        ({"evaluate": lambda: {"error": 1}}, "evaluation before training"),
        ({"epochs": 5}, "epochs 4 instead of 5"),
        ({"recipe": Recipe(lr=0.02)}, "lr 0.01 instead of 0.02"),
        ({"recipe": Recipe(lr=0.01, schedule="constant")}, "schedule one cycle instead of constant"),
        ({"recipe": Recipe(lr=0.01, weight_prior=0.1)}, "weight_prior 0 instead of 0.1"),
        ({"recipe": Recipe(lr=0.01, bf16=True)}, "bf16 False instead of True"),
    ],
)
def test_another_run_is_never_taken_but_kept_aside_or_refused(unfinished, change, reason, capsys):
    before, folder, kept = unfinished.read_bytes(), unfinished.parent, unfinished.with_name("run-1.pt")
    with pytest.raises(ValueError, match=rf"{re.escape(str(unfinished))} is of another run: .*{reason}.*delete it"):
        train(folder, strict=True, **change)
    assert unfinished.read_bytes() == before
    assert_same_run(train(folder, **change), train(**change))
    told = next(line for line in capsys.readouterr().out.splitlines() if "training anew" in line)
    assert reason in told and told.endswith(f"it is kept as {kept}")
    assert kept.read_bytes() == before
    train(folder)
    assert unfinished.with_name("run-2.pt").exists()


def test_a_run_is_known_on_another_number_of_threads(folder, capsys):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        train(folder, width=500, strict=True)
    assert "4 of them taken" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.float32(0.5), np.arange(2), torch.ones(()), Path("a"), (1, None)])
def test_numbers_of_other_libraries_and_paths_are_read_back_as_plain_ones(folder, value):
    options = {"recipe": Recipe(lr=np.float64(0.01), weight_prior=np.float32(0.5)), "epochs": np.int64(2)}
    options["evaluate"] = lambda: {"seen": value}
    (_, history), (_, again) = train(folder, **options), train(folder, **options)
    assert again == history
    assert type(history[0]["seen"]) in (float, list, str)


def test_what_no_file_can_keep_is_refused():
    with pytest.raises(TypeError, match="no file can keep <object"):
        train(evaluate=lambda: {"seen": object()})


def test_a_data_loader_trains_but_is_refused_with_a_folder_before_training(folder):
    loader = torch.utils.data.DataLoader(torch.rand(20, 3), 5)
    model = network()
    assert len(fit(lambda x: model(x).square().mean(), model, loader, Recipe(), epochs=1)) == 1
    with pytest.raises(ValueError, match=r"DataLoader cannot be resumed.*Batches"):
        fit(None, model, loader, Recipe(), epochs=1, folder=folder)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut short", "no model", "no run", "malicious"])
def test_what_is_no_whole_checkpoint_is_refused_and_not_executed(unfinished, damage):
    if damage == "cut short":
        os.truncate(unfinished, 1000)
    else:
        states = {"no model": {}, "no run": {"model": network().state_dict()}}
        states["malicious"] = {"history": [], "identity": {}, "model": Malicious(unfinished.parent / "executed")}
        torch.save(states[damage], unfinished)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(unfinished))} is not a checkpoint .*delete it"):
        train(unfinished.parent)
    assert os.listdir(unfinished.parent) == [unfinished.name]


@pytest.mark.parametrize(
    ("bad", "at", "told"),
    [
        ("nan", 6, "epoch 2, step 3. Lower the learning rate"),
        ("-inf", 6, "epoch 2, step 3. Lower the learning rate"),
        ("inf", 0, "epoch 1, step 1. Scale x to about 1"),  # as of a feature of 10⁴
    ],
)
def test_a_loss_that_is_not_finite_stops_training_before_the_step(bad, at, told):
    model, steps, before = nn.Linear(1, 1), itertools.count(), []

    def loss_fn(x):
        before[:] = [p.detach().clone() for p in model.parameters()]
        return model(x).square().mean() * (float(bad) if next(steps) == at else 1)

    with pytest.raises(FloatingPointError, match=f"tiny.*{bad} in {told}"):
        fit(loss_fn, model, batches(), Recipe(lr=0.1), epochs=3, name="tiny")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_never_reaches_the_checkpoint(folder):
    model, steps = nn.Linear(1, 1), itertools.count()

    def loss_fn(x):
        loss = model(x).square().mean()
        poison = (model.weight * 0).abs().sqrt().sum()  # zero, with a gradient of 0 · ∞
        return loss + poison if next(steps) == 8 else loss  # the last step of epoch 2, after a look at the first

    with pytest.raises(FloatingPointError, match=r"tiny.*after epoch 2"):
        fit(loss_fn, model, batches(), Recipe(lr=0.1), epochs=3, folder=folder, name="tiny")
    state = load_state(folder / "tiny.pt")
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
    history = fit(loss_fn, model, batches(), Recipe(lr=0.1), epochs=2, **options)
    for epoch, record in enumerate(history):
        assert record["loss"] == pytest.approx(sum(losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-12)
    assert history[-1]["bias"] == model.bias.item() != history[0]["bias"]
    assert order == ["before 0", *4 * ["training"], "evaluation", "before 1", *4 * ["training"], "evaluation"]
    assert not model.training


@pytest.fixture
def groups():
    """Adam's settings at each step that the test takes."""
    groups = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: groups.append(dict(optimizer.param_groups[0])))
    yield groups
    hook.remove()


def test_the_rate_rises_to_its_peak_then_falls_to_its_least_and_the_momentum_inversely(groups):
    """In exactly so many steps as there are: an initial rate of 1/25 of the peak, a last one of 1/10,000 of that."""
    train()
    rates, momenta = [group["lr"] for group in groups], [group["betas"][0] for group in groups]
    peak = rates.index(max(rates))
    assert len(rates) == 20
    assert 0 < peak < 19
    assert (rates[0], rates[peak], rates[-1]) == pytest.approx((0.01 / 25, 0.01, 0.01 / 25 / 1e4))
    assert sorted(rates[: peak + 1]) == rates[: peak + 1]
    assert sorted(rates[peak:], reverse=True) == rates[peak:]
    assert (momenta[0], momenta[peak], momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))


def test_a_falling_rate_stays_for_three_quarters_of_the_steps_and_the_momentum_for_all(groups):
    train(recipe=Recipe(lr=0.01, schedule="falling"))
    fall = [0.008, 0.006, 0.004, 0.002]
    assert [group["lr"] for group in groups] == pytest.approx([*[0.01] * 16, *fall])
    assert {group["betas"] for group in groups} == {(0.9, 0.999)}


def test_at_a_constant_rate_a_short_run_is_the_beginning_of_a_long_one():
    constant = Recipe(lr=0.01, schedule="constant")
    (_, history), (_, longer) = (train(epochs=epochs, recipe=constant) for epochs in (2, 4))
    assert [epoch["loss"] for epoch in longer[:2]] == [epoch["loss"] for epoch in history]
    assert train(epochs=2)[1][0]["loss"] != history[0]["loss"]


def test_cpu_seconds_are_those_of_an_epochs_training_alone(monkeypatch):
    """On a clock by which a step takes a second, and an evaluation a minute."""
    clock = [0]
    monkeypatch.setattr("vae.training.time.process_time", lambda: sum(clock))
    hook = register_optimizer_step_pre_hook(lambda *_: clock.append(1))
    _, history = train(evaluate=lambda: clock.append(60) or {})
    hook.remove()
    assert [(record["cpu_seconds"], record["updates"]) for record in history] == [(5, 5)] * 4


@pytest.mark.parametrize(("seconds", "verbose", "lines"), [(1, True, 1), (16, True, 3), (31, True, 5), (31, False, 0)])
def test_a_file_gets_at_most_a_line_an_epoch_or_every_half_minute_or_none(seconds, verbose, lines, capsys, monkeypatch):
    clock = itertools.count(step=seconds)  # asked before training and after each epoch
    monkeypatch.setattr("vae.training.time.monotonic", lambda: next(clock))
    train(verbose=verbose)
    out = capsys.readouterr().out
    assert "\r" not in out and len(out.splitlines()) == lines
