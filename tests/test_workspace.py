"""Where figures go: only a full run on the full MNIST writes to _images/."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib import pyplot as plt

from vae.plotting import curves
from vae.workspace import Workspace


@pytest.fixture(autouse=True)
def quick_embedded(monkeypatch, embedded, offline):
    """The embedded images, read once for all tests, in an empty working folder with no network."""
    monkeypatch.setattr("vae.workspace.embedded_mnist", lambda: embedded)


@pytest.fixture(autouse=True)
def displayed(monkeypatch):
    """What the notebook was given to show."""
    images = []
    monkeypatch.setattr("vae.workspace.display", images.append)
    return images


def figure():
    return curves({"loss": {"train": [3.0, 2.0, 1.0]}, "error": {"valid": [0.3, 0.2, 0.1]}})


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def says_preview(path):
    """Whether the picture holds the crimson of the note that no figure of a full run has."""
    pixels = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
    return bool((abs(pixels - [220, 20, 60]).sum(-1) < 60).any())


def test_smoke_run_uses_embedded_images_and_never_touches_images(tmp_path, monkeypatch, write_mnist, offline):
    write_mnist(tmp_path / "data")  # even if MNIST is there
    before = files(tmp_path)
    monkeypatch.setenv("VAE_SMOKE", "1")
    workspace, shown = Workspace(), figure()
    workspace.show(shown, save_as="curves.png")
    assert len(workspace.mnist.train_images) == 4000
    assert files(tmp_path) == sorted([*before, "preview/smoke/curves.png"])
    assert "PREVIEW" in shown.get_suptitle()
    assert says_preview("preview/smoke/curves.png")
    assert workspace.count(100, 2) == 2
    with workspace.resumable("m1") as state:
        assert state == Path("preview/smoke/checkpoints/m1")
    assert not offline


def test_without_mnist_a_full_run_goes_on_loudly_into_preview(tmp_path, capsys):
    workspace, shown = Workspace(), figure()
    workspace.show(shown, save_as="curves.png")
    said = capsys.readouterr().out
    assert "train-images-idx3-ubyte" in said
    assert "GOING ON WITH A PREVIEW" in said
    assert len(workspace.mnist.train_images) == 4000
    assert files(tmp_path) == ["preview/curves.png"]
    assert "PREVIEW" in shown.get_suptitle()
    assert says_preview("preview/curves.png")
    assert workspace.count(100, 2) == 100
    with workspace.resumable("m1") as state:
        assert state == Path("preview/checkpoints/m1")


def test_with_mnist_a_full_run_writes_to_images(tmp_path, capsys, write_mnist):
    write_mnist(tmp_path / "data")
    before = files(tmp_path)
    workspace, shown = Workspace(), figure()
    workspace.show(shown, save_as="curves.png")
    assert len(workspace.mnist.test_images) == 3
    assert files(tmp_path) == sorted(["_images/curves.png", *before])
    assert shown.get_suptitle() == ""
    assert not says_preview("_images/curves.png")
    assert workspace.count(100, 2) == 100
    with workspace.resumable("m1") as state:
        assert state == Path("checkpoints/m1")
    assert capsys.readouterr().out == ""


def test_what_training_resumes_from_outlives_a_kill_and_no_success(tmp_path):
    workspace = Workspace()
    with pytest.raises(KeyboardInterrupt), workspace.resumable("m1") as state:
        state.mkdir(parents=True)
        (state / "m1.pt").write_text("half a run")
        raise KeyboardInterrupt
    with workspace.resumable("m1") as state:
        assert (state / "m1.pt").read_text() == "half a run"
    assert not state.exists()


def test_damaged_mnist_stops_the_run(tmp_path, write_mnist):
    (write_mnist(tmp_path / "data") / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        Workspace()


def test_a_figure_saved_again_has_the_same_bytes(tmp_path):
    workspace = Workspace()
    saved = []
    for _ in range(2):
        workspace.show(figure(), save_as="curves.png")
        saved.append((tmp_path / "preview/curves.png").read_bytes())
    assert saved[0] == saved[1]


def test_the_notebook_shows_what_is_saved_and_nothing_twice(tmp_path, displayed):
    workspace, first, second = Workspace(), figure(), figure()
    workspace.show(first)
    assert files(tmp_path) == []  # saved only on request
    workspace.show(second, save_as="curves.png")
    assert [image.data for image in displayed] == [(tmp_path / "preview/curves.png").read_bytes()] * 2
    assert PIL.Image.open(io.BytesIO(displayed[0].data)).format == "PNG"
    assert not plt.fignum_exists(first.number)
    assert not plt.fignum_exists(second.number)


def test_an_animation_holds_its_figures_in_turn_and_says_what_it_is_not(tmp_path, displayed):
    """Three figures, three frames, for ever; the notebook gets the bytes of the file; the same again."""
    workspace = Workspace()
    for _ in range(2):
        figures = [curves({"ELBO": {"train": [1, 2, last]}}) for last in (1, 2, 3)]
        workspace.show_animation(figures, save_as="flight.gif", milliseconds=70)
    content = (tmp_path / "preview/flight.gif").read_bytes()
    assert [image.data for image in displayed] == [content] * 2
    animation = PIL.Image.open(io.BytesIO(content))
    assert (animation.format, animation.n_frames, animation.info["loop"]) == ("GIF", 3, 0)
    frames = []
    for number in range(3):
        animation.seek(number)
        assert animation.info["duration"] == 70
        frames.append(animation.convert("RGB").tobytes())
    assert len(set(frames)) == 3
    assert not plt.get_fignums()


def test_a_save_cut_short_leaves_the_old_figure(tmp_path, monkeypatch):
    workspace = Workspace()
    workspace.show(figure(), save_as="curves.png")
    old = (tmp_path / "preview/curves.png").read_bytes()

    def write_a_part(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", write_a_part)
    with pytest.raises(OSError, match="disk full"):
        workspace.show(figure(), save_as="curves.png")
    assert files(tmp_path) == ["preview/curves.png"]
    assert (tmp_path / "preview/curves.png").read_bytes() == old
