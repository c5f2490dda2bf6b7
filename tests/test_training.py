"""The training loop: exact resume, refused checkpoints, a clear stop, one line of progress."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close
from tqdm import tqdm

from vae.data import Batches, binarize
from vae.training import evaluate_mean, fit, load_checkpoint, load_model


class Killed(Exception):
    pass


def kill():
    raise Killed


def train(checkpoint=None, *, fail_at=None, fail=kill, seed=1, width=8, epochs=4, lr=0.01, bf16=False, settings=None):
    """Train for 5 steps an epoch, drawing noise in the batches, the loss and the evaluation; `fail` at a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))
    batches = Batches(torch.rand(20, 3), 4, torch.Generator().manual_seed(seed), transform=binarize)
    batches.rows = torch.linspace(0, 1, 60).view(20, 3)  # the data are the same for every seed
    steps = itertools.count()

    def loss_fn(x):
        if next(steps) == fail_at:
            fail()
        return (model(x + torch.randn_like(x)) - x).square().mean()

    def evaluate():
        return {"error": (model(torch.randn(9, 3)) ** 2).mean().item()}

    kept = {"checkpoint": checkpoint, "settings": settings}
    history = fit(loss_fn, model, batches, epochs=epochs, lr=lr, evaluate=evaluate, bf16=bf16, **kept)
    return [p.detach() for p in model.parameters()], history


def assert_same_run(run, reference):
    parameters, history = run
    assert history == reference[1]
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


@pytest.mark.parametrize(("fail_at", "seed"), [(3, 1), (5, 2), (12, 2), (19, 2)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(checkpoint, fail_at, seed):
    reference = train()
    with pytest.raises(Killed):
        train(checkpoint, fail_at=fail_at)
    assert_same_run(train(checkpoint, seed=seed), reference)  # once an epoch is saved, any seed will do


def test_a_run_may_be_interrupted_again_and_again(checkpoint):
    for _ in range(3):
        with pytest.raises(Killed):
            train(checkpoint, fail_at=7)  # one epoch further each time
    assert_same_run(train(checkpoint), train())


def test_a_run_resumes_after_a_real_kill(checkpoint):
    code = (
        "import os, signal, sys; from test_training import train;"
        "train(sys.argv[1], fail_at=12, fail=lambda: os.kill(os.getpid(), signal.SIGKILL))"
    )
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    killed = subprocess.run([sys.executable, "-c", code, checkpoint], env=os.environ | {"PYTHONPATH": paths})
    assert killed.returncode == -signal.SIGKILL
    assert len(load_checkpoint(checkpoint)["history"]) == 2
    assert_same_run(train(checkpoint, seed=2), train())


def test_a_save_cut_short_leaves_the_old_checkpoint(checkpoint, monkeypatch):
    reference, save, saves = train(), torch.save, itertools.count()

    def cut_short(state, path):
        save(state, path)
        if next(saves) == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut_short)
        with pytest.raises(Killed):
            train(checkpoint)
    assert os.listdir(checkpoint.parent) == [checkpoint.name]
    assert len(load_checkpoint(checkpoint)["history"]) == 2
    assert_same_run(train(checkpoint, seed=2), reference)


def test_a_finished_run_is_taken_as_it_is(checkpoint):
    reference = train(checkpoint)
    after = torch.rand(1)  # what comes after it draws the same numbers, too
    assert_same_run(train(checkpoint, seed=2, fail_at=0), reference)
    assert_close(torch.rand(1), after)
    with pytest.raises(ValueError, match="delete it"):
        train(checkpoint, epochs=5)


@pytest.mark.parametrize("changed", [{"epochs": 5}, {"lr": 0.02}, {"bf16": True}, {"settings": {"alpha": 2}}])
def test_an_unfinished_run_with_other_settings_is_refused(unfinished, changed):
    before = unfinished.read_bytes()
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(unfinished))}.*delete it"):
        train(unfinished, **changed)
    assert unfinished.read_bytes() == before


def test_a_checkpoint_of_another_architecture_is_refused(unfinished):
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(unfinished))}.*another architecture"):
        train(unfinished, width=9)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("length", [0, 1, 1000, -100, -1])
def test_a_truncated_checkpoint_is_refused(unfinished, length):
    unfinished.write_bytes(unfinished.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(unfinished))} is not .*delete it"):
        train(unfinished)


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 50, b"{}", b"hello world\n", b"epoch,loss\n1,2.0\n", b"\x89PNG\r\n\x1a\n" + b"\x00" * 50],
    ids=["zeros", "json", "text", "csv", "png"],
)
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint, content):
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(checkpoint))} is not .*delete it"):
        train(checkpoint)


def test_parameters_saved_without_their_run_are_refused(checkpoint):
    checkpoint.parent.mkdir()
    torch.save(nn.Linear(3, 3).state_dict(), checkpoint)
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        train(checkpoint)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_is_refused_and_not_executed(checkpoint, tmp_path, zipped):
    trace = tmp_path / "executed"
    checkpoint.parent.mkdir()
    state = {"history": [], "settings": {}, "model": Malicious(trace)}
    torch.save(state, checkpoint, _use_new_zipfile_serialization=zipped)
    for read in (load_checkpoint, train):
        with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
            read(checkpoint)
    assert not trace.exists()


def test_load_model_restores_the_trained_parameters(checkpoint):
    parameters, _ = train(checkpoint)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    load_model(model, checkpoint)
    for loaded, trained in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(loaded, trained)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_training_before_the_step(bad):
    model, steps, before = nn.Linear(1, 1), itertools.count(), {}

    def loss_fn(x):
        before["parameters"] = [p.detach().clone() for p in model.parameters()]
        loss = model(x).square().mean()
        return loss * float(bad) if next(steps) == 6 else loss

    batches = Batches(torch.rand(20, 1), 5, torch.Generator())
    with pytest.raises(FloatingPointError, match=f"tiny.*{bad} in epoch 2, step 3"):
        fit(loss_fn, model, batches, epochs=3, lr=0.1, name="tiny")
    for parameter, expected in zip(model.parameters(), before["parameters"], strict=True):
        assert torch.equal(parameter, expected)


def test_a_gradient_that_is_not_finite_never_reaches_the_checkpoint(checkpoint):
    model, steps = nn.Linear(1, 1), itertools.count()

    def loss_fn(x):
        loss = model(x).square().mean()
        poison = (model.weight * 0).abs().sqrt().sum()  # zero, with a gradient of 0 · ∞
        return loss + poison if next(steps) == 7 else loss  # the last step of epoch 2

    batches = Batches(torch.rand(20, 1), 5, torch.Generator())
    with pytest.raises(FloatingPointError, match=r"tiny.*after epoch 2"):
        fit(loss_fn, model, batches, epochs=3, lr=0.1, checkpoint=checkpoint, name="tiny")
    state = load_checkpoint(checkpoint)
    assert len(state["history"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_history_holds_the_mean_loss_and_the_evaluation_after_each_epoch():
    model, losses = nn.Linear(1, 1), []

    def loss_fn(x):
        loss = model(x).square().mean()
        losses.append(loss.item())
        return loss

    batches = Batches(torch.rand(20, 1), 5, torch.Generator())
    history = fit(loss_fn, model, batches, epochs=3, lr=0.1, evaluate=lambda: {"bias": model.bias.item()})
    for epoch, record in enumerate(history):
        assert record["loss"] == pytest.approx(sum(losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-12)
    assert history[-1]["bias"] == model.bias.item() != history[0]["bias"]


def test_steps_are_taken_in_training_mode_and_evaluations_in_the_other():
    model, modes = nn.Linear(3, 3).eval(), []

    def loss_fn(x):
        modes.append(("step", model.training))
        return model(x).square().mean()

    def evaluate():
        modes.append(("evaluation", model.training))
        return {}

    fit(loss_fn, model, Batches(torch.rand(4, 3), 2, torch.Generator()), epochs=2, lr=0.01, evaluate=evaluate)
    assert modes == [("step", True), ("step", True), ("evaluation", False)] * 2
    assert not model.training


def test_the_rate_rises_to_its_peak_then_falls():
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    train(lr=0.01)
    hook.remove()
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(0.01)
    assert 0 < peak < 19
    assert sorted(rates[: peak + 1]) == rates[: peak + 1]
    assert sorted(rates[peak:], reverse=True) == rates[peak:]


def screen(out):
    """The lines that a terminal shows in the end: a carriage return goes back to overwrite the line."""
    lines = []
    for text in out.split("\n"):
        shown = ""
        for part in text.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.fixture
def eager_bar(monkeypatch):
    """Make the progress bar redraw at every step, which it otherwise does twice a second."""
    monkeypatch.setattr("vae.training.tqdm", lambda **options: tqdm(**options | {"mininterval": 0, "miniters": 1}))


def test_progress_ends_in_one_line_without_times(capsys, eager_bar):
    _, history = train()
    out = capsys.readouterr().out
    assert "epoch 2/4" in out
    assert " left" in out
    assert screen(out) == [f"run: 4 epochs, loss {history[-1]['loss']:.2f}", ""]


def test_progress_counts_from_where_a_run_resumes(unfinished, capsys, eager_bar):
    capsys.readouterr()
    train(unfinished)
    drawn = re.findall(r"(\d+) %", capsys.readouterr().out)
    assert [int(percent) for percent in drawn] == list(range(50, 101, 5))


def test_bfloat16_layers_learn_the_same_regression():
    """y = 2x + noise: the least-squares loss is reached to bfloat16's relative precision of 2⁻⁸."""
    x = torch.randn(400, 1)
    rows = torch.cat([x, 2 * x + torch.randn(400, 1)], 1)
    solution = torch.linalg.lstsq(rows[:, :1], rows[:, 1:]).solution
    least = (rows[:, :1] @ solution - rows[:, 1:]).square().mean().item()

    def final_loss(bf16):
        model, dtypes = nn.Linear(1, 1, bias=False), set()

        def loss_fn(batch):
            prediction = model(batch[:, :1])
            dtypes.add(prediction.dtype)
            return (prediction.float() - batch[:, 1:]).square().mean()

        history = fit(loss_fn, model, Batches(rows, 400, torch.Generator()), epochs=100, lr=0.5, bf16=bf16)
        return history[-1]["loss"], dtypes

    for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        loss, dtypes = final_loss(bf16)
        assert loss == pytest.approx(least, rel=2**-8)
        assert dtypes == {dtype}


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_evaluate_mean_weighs_all_rows_alike(batch_size):
    x, y = torch.randn(10, 2, requires_grad=True), torch.randn(10)
    sizes = []

    def value(x, y):
        sizes.append(len(x))
        assert not (x * y.unsqueeze(1)).requires_grad
        return x.sum(1) * y

    expected = sum(x[i].sum().item() * y[i].item() for i in range(10)) / 10
    assert_close(evaluate_mean(value, x, y, batch_size=batch_size), expected, rtol=1e-5, atol=1e-6)
    assert max(sizes) <= batch_size
