"""Grids, tilings and figures: where each thing is drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close
from torchvision.utils import make_grid

from vae import plotting
from vae.plotting import latent_grid, tile


@pytest.mark.parametrize("n", [2, 5, 20])
def test_latent_grid_gives_each_cell_the_same_prior_mass(n):
    quantiles = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).float()
    grid = latent_grid(n).view(n, n, 2)  # (row, column, latent)
    for i in range(n):
        assert_close(grid[i, :, 0], quantiles)  # the first latent grows to the right
        assert_close(grid[:, i, 1], quantiles.flip(0))  # the second upwards


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7)])
def test_tile_puts_each_image_in_its_place_upright_in_its_colors(shape):
    images = torch.rand(6, *shape)
    picture = tile(images, columns=3)
    assert picture.shape == (2 * 5, 3 * 7, *([3] if shape[0] == 3 else []))
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        place = picture[5 * row : 5 * (row + 1), 7 * column : 7 * (column + 1)]
        assert np.array_equal(place, image.permute(1, 2, 0) if shape[0] == 3 else image.view(5, 7))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 3, 4, 9])
def test_tile_leaves_what_is_missing_of_the_last_row_black_as_torchvision_does(channels, columns):
    images = torch.rand(7, channels, 5, 4)
    expected = make_grid(images, nrow=columns, padding=0)[[0] if channels == 1 else slice(None)]
    assert np.array_equal(tile(images, columns), expected.permute(1, 2, 0).squeeze(2))


def test_grids_and_panels_show_each_tiling_under_its_title_and_name_their_rows():
    panels = {name: torch.rand(6, 1, 28, 20) for name in "abcd"}
    (axis,) = plotting.image_grid(panels["a"], 3, title="a", row_names=("top", "bottom")).axes
    names = {label.get_text(): y for y, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    assert names == {"top": 13.5, "bottom": 41.5}  # the middles of the two rows
    for axes in ([axis], *(plotting.image_panels(panels, 3, per_row).axes for per_row in (None, 2))):
        shown = {axis.get_title(): axis.images[0].get_array() for axis in axes}
        assert list(shown) == list(panels)[: len(shown)]
        assert all(np.array_equal(picture, tile(panels[title], 3)) for title, picture in shown.items())


@pytest.mark.parametrize("num_classes", [3, 10, 14])
def test_latent_scatter_numbers_each_class_at_its_median_in_a_color_of_its_own(num_classes):
    """Whose names need not be 0…K − 1."""
    labels, codes = torch.arange(num_classes).square().repeat(7), torch.randn(7 * num_classes, 2)
    figure = plotting.latent_scatter({"one": codes, "two": -codes}, labels)
    for axis, shown in zip(figure.axes, (codes.numpy(), -codes.numpy()), strict=True):
        (dots,) = axis.collections
        assert np.array_equal(dots.get_offsets(), shown)
        colors = dots.to_rgba(dots.get_array())
        assert len(np.unique(colors, axis=0)) == num_classes
        assert [text.get_text() for text in axis.texts] == [str(k * k) for k in range(num_classes)]
        for k, text in enumerate(axis.texts):
            assert text.get_position() == pytest.approx(tuple(np.median(shown[labels.numpy() == k * k], axis=0)))
            assert np.allclose(text.get_bbox_patch().get_edgecolor(), colors[k])
        limits = np.quantile(shown, [0.01, 0.99], axis=0).T.flatten()  # all but one percent on each side
        assert (*axis.get_xlim(), *axis.get_ylim()) == pytest.approx(limits.tolist())


def test_curves_count_epochs_from_one_or_what_there_are_several_of_in_each_and_mark_where_they_are_told_to():
    panels = {"elbo": {"train": [3.0, 2.0], "valid": [4.0, 3.0]}, "error": {"train": [0.5], "valid": [0.6]}}
    for per_epoch in (1, 50_000):
        axes = plotting.curves(panels, mark=1.5, per_epoch=per_epoch, xscale="log", ylim=(0, 5)).axes
        for axis, lines in zip(axes, panels.values(), strict=True):
            *drawn, mark = axis.lines
            for line, (name, values) in zip(drawn, lines.items(), strict=True):
                seen = [per_epoch, 2 * per_epoch][: len(values)]
                assert (line.get_label(), [*line.get_xdata()], [*line.get_ydata()]) == (name, seen, values)
            assert mark.get_xdata() == [1.5, 1.5]
            assert (axis.get_xscale(), axis.get_ylim()) == ("log", (0, 5))
        assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["train", "valid"]
