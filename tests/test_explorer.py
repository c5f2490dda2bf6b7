"""The explorer without a browser: what its sliders and buttons do to the image."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from experiments.explorer import PlaneExplorer

CODES = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(10, 2)
WEIGHTS = torch.linspace(-2, 2, 784, dtype=torch.float64, requires_grad=True)


def decode(z):
    """A "decoder" whose image differs in every pixel, and from one z to the next."""
    assert not torch.is_grad_enabled() and z.dtype == torch.float64  # like the codes, and no graph is kept
    return torch.sigmoid(z[:, :1] * WEIGHTS + z[:, 1:] * WEIGHTS.flip(0) ** 2).view(-1, 1, 28, 28)


def shows(explorer, *z):
    """Whether the sliders are at z, and the image is what `decode` says of it, dark on white."""
    with torch.no_grad():
        expected = (255 * (1 - decode(CODES.new_tensor([z])))).round()[0, 0].numpy()
    shown = np.asarray(PIL.Image.open(io.BytesIO(explorer.image.value)))
    return [slider.value for slider in explorer.sliders] == list(z) and np.array_equal(shown, expected)


def test_the_image_is_the_decoders_wherever_the_sliders_are_up_to_their_limit():
    explorer = PlaneExplorer(decode, CODES, limit=2.5)
    assert shows(explorer, 0, 0)
    first, second = explorer.sliders
    first.value = 1.25  # one slider leaves the other where it is
    assert shows(explorer, 1.25, 0)
    second.value = -99
    assert shows(explorer, 1.25, -2.5)
    text = explorer._repr_mimebundle_()["text/plain"]
    assert text.endswith("They need a live kernel: run this cell.")  # whole: ipywidgets cuts long texts


def test_each_button_goes_to_its_digit_from_anywhere_and_again():
    explorer = PlaneExplorer(decode, CODES)
    for digit in (*range(10), 3, 3):
        explorer.sliders[1].value = 2.75
        explorer.buttons[digit].click()
        assert explorer.buttons[digit].description == str(digit)
        assert shows(explorer, *(round(value, 2) for value in CODES[digit].tolist()))  # the sliders' steps


@pytest.mark.parametrize("code", [-3.5, float("nan")])
def test_codes_that_the_sliders_cannot_reach_are_refused(code):
    with pytest.raises(ValueError, match="limit"):
        PlaneExplorer(decode, torch.cat([CODES, torch.tensor([[0, code]])]))
