"""The explorer without a browser: what its sliders and buttons do to the image."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from vae.explorer import PlaneExplorer

CODES = torch.linspace(-2, 2, 20).reshape(10, 2)


def decode(z):
    """A "decoder" whose image differs in every pixel, and from one z to the next."""
    weights = torch.linspace(-2, 2, 784)
    return torch.sigmoid(z[:, :1] * weights + z[:, 1:] * weights.flip(0) ** 2)  # (N, 784)


def shown(explorer):
    """The greys (28, 28) of the explorer's image."""
    return np.asarray(PIL.Image.open(io.BytesIO(explorer.image.value)))


def expected(z):
    """The greys (28, 28) of what `decode` says of z, dark on white."""
    return (255 * (1 - decode(torch.tensor([z])))).round().view(28, 28).numpy()


def place(explorer):
    return [slider.value for slider in explorer.sliders]


def test_the_image_is_the_decoders_wherever_the_sliders_are():
    explorer = PlaneExplorer(decode, CODES)
    assert place(explorer) == [0, 0]
    assert np.array_equal(shown(explorer), expected([0.0, 0.0]))
    for latent, value in ((0, 1.25), (1, -2.5), (0, -3.0)):  # one slider leaves the other where it is
        explorer.sliders[latent].value = value
        assert place(explorer)[latent] == value
        assert np.array_equal(shown(explorer), expected(place(explorer)))
    assert place(explorer) == [-3.0, -2.5]


def test_each_button_goes_to_its_digit_from_anywhere_and_again():
    explorer = PlaneExplorer(decode, CODES)
    for digit in (*range(10), 3, 3):
        explorer.sliders[1].value = 2.75
        explorer.buttons[digit].click()
        assert explorer.buttons[digit].description == str(digit)
        assert place(explorer) == [round(value, 2) for value in CODES[digit].tolist()]  # the sliders' steps
        assert np.array_equal(shown(explorer), expected(place(explorer)))


def test_sliders_stop_at_the_limit_and_the_image_with_them():
    explorer = PlaneExplorer(decode, CODES, limit=2.5)
    explorer.sliders[0].value, explorer.sliders[1].value = 99, -99
    assert place(explorer) == [2.5, -2.5]
    assert np.array_equal(shown(explorer), expected([2.5, -2.5]))


@pytest.mark.parametrize("code", [-3.5, float("nan")])
def test_codes_that_the_sliders_cannot_reach_are_refused(code):
    codes = CODES.clone()
    codes[4, 1] = code
    with pytest.raises(ValueError, match="limit"):
        PlaneExplorer(decode, codes)


def test_the_decoder_gets_points_like_the_codes_and_keeps_no_graph():
    seen = []
    weights = torch.ones(2, 784, dtype=torch.float64, requires_grad=True)

    def record(z):
        seen.append(torch.sigmoid(z @ weights))
        return seen[-1]

    PlaneExplorer(record, CODES.double()).buttons[0].click()
    assert {image.dtype for image in seen} == {torch.float64}
    assert not any(image.requires_grad for image in seen)


def test_where_no_widget_can_be_shown_a_whole_sentence_says_what_to_do():
    text = PlaneExplorer(decode, CODES)._repr_mimebundle_()["text/plain"]
    assert text.endswith("They need a live kernel: run this cell.")  # ipywidgets cuts long texts
