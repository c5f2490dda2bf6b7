"""A widget for a live notebook: move over a two-dimensional latent space and see the decoder's image at once."""

import io

import PIL.Image
import torch
from ipywidgets import HTML, Button, FloatSlider, HBox, Image, Layout, VBox

from vae.plotting import tile


class PlaneExplorer(HBox):
    """The image decoded at z, sliders for z₁ and z₂, and a button for each digit that moves both to the digit's code.

    `decode` maps latents (N, 2) to images (N, 1, H, W) in [0, 1]; `codes` (10, 2) holds each digit's code. The sliders
    span [−limit, limit]. Raises ValueError for codes beyond it.
    """

    def __init__(self, decode, codes, limit=3.0):
        if not codes.abs().max() <= limit:
            raise ValueError(
                f"codes reach to {codes.abs().max():g}, the sliders only to {limit:g}; choose a larger limit"
            )
        self.decode, self.codes = decode, codes
        self.sliders = [self._slider(name, limit) for name in ("z₁", "z₂")]
        self.buttons = [self._button(digit) for digit in range(len(codes))]
        self.image = Image(format="png", layout=Layout(width="280px", height="280px", border="1px solid #ccc"))
        heading = HTML("Go to the digit")
        layout = Layout(justify_content="center", margin="0 0 0 16px")
        controls = VBox([*self.sliders, heading, HBox(self.buttons)], layout=layout)
        super().__init__([self.image, controls])
        self._draw()

    def __repr__(self):
        """Stand where no widget can be shown."""
        return "Sliders over the latent plane. They need a live kernel: run this cell."

    def _slider(self, name, limit):
        look = {"style": {"description_width": "24px"}, "layout": Layout(width="auto")}
        slider = FloatSlider(description=name, min=-limit, max=limit, step=0.01, **look)
        slider.observe(self._draw, "value")
        return slider

    def _button(self, digit):
        button = Button(description=str(digit), layout=Layout(width="32px"))
        button.on_click(lambda _: self._go_to(*self.codes[digit].tolist()))
        return button

    def _go_to(self, *z):
        for slider, value in zip(self.sliders, z, strict=True):
            slider.value = round(value, 2)  # a multiple of the step, as the browser would make it a moment later

    def _draw(self, _=None):
        """Show the image at the sliders' z, dark on white as in the figures; the browser enlarges it smoothly."""
        z = self.codes.new_tensor([[slider.value for slider in self.sliders]])  # (1, 2)
        with torch.no_grad():
            ink = tile(self.decode(z), columns=1)  # (H, W)
        png = io.BytesIO()
        PIL.Image.fromarray((255 * (1 - ink)).round().astype("uint8")).save(png, "PNG")
        self.image.value = png.getvalue()
