"""Grids, tilings and figures: where each thing is drawn."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch.testing import assert_close

from vae import plotting
from vae.plotting import latent_grid, tile


@pytest.mark.parametrize("n", [2, 5, 20])
def test_latent_grid_gives_each_cell_the_same_prior_mass(n):
    quantiles = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).float()
    grid = latent_grid(n).view(n, n, 2)  # (row, column, latent)
    for i in range(n):
        assert_close(grid[i, :, 0], quantiles)  # the first latent grows to the right
        assert_close(grid[:, i, 1], quantiles.flip(0))  # the second upwards


def test_latent_grid_within_limits_is_even():
    grid = latent_grid(3, limit=2)
    assert grid.tolist() == [[x, y] for y in (2, 0, -2) for x in (-2, 0, 2)]


def test_tile_puts_each_image_in_its_place_upright():
    images = torch.rand(6, 784)
    picture = tile(images, columns=3)
    assert picture.shape == (2 * 28, 3 * 28)
    for i, image in enumerate(images):
        row, column = divmod(i, 3)
        place = picture[28 * row : 28 * (row + 1), 28 * column : 28 * (column + 1)]
        assert np.array_equal(place, image.view(28, 28))


def pictures(figure):
    """The pictures that a figure shows, by title."""
    return {axis.get_title(): axis.images[0].get_array() for axis in figure.axes}


def test_image_grid_shows_the_tiling_and_names_its_rows():
    images = torch.rand(6, 784)
    figure = plotting.image_grid(images, 3, title="digits", row_names=("top", "bottom"))
    assert np.array_equal(pictures(figure)["digits"], tile(images, 3))
    (axis,) = figure.axes
    names = {label.get_text(): y for y, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    assert names == {"top": 13.5, "bottom": 41.5}  # the middles of the two rows


@pytest.mark.parametrize("panels_per_row", [None, 2])
def test_image_panels_show_each_tiling_under_its_title(panels_per_row):
    panels = {name: torch.rand(6, 784) for name in "abcd"}
    shown = pictures(plotting.image_panels(panels, 2, panels_per_row))
    assert list(shown) == list(panels)
    for title, images in panels.items():
        assert np.array_equal(shown[title], tile(images, 2))


def test_points_panels_show_each_set_over_the_data():
    data, panels = torch.randn(5, 2), {name: torch.randn(9, 2) for name in "abcd"}
    figure = plotting.points_panels(panels, data)
    for axis, (title, points) in zip(figure.axes, panels.items(), strict=True):
        assert axis.get_title() == title
        below, above = (line.get_xydata() for line in axis.lines)
        assert np.array_equal(below, data)
        assert np.array_equal(above, points)


def test_latent_scatter_numbers_each_digit_at_its_median():
    labels, codes = torch.arange(10).repeat(7), torch.randn(70, 2)
    figure = plotting.latent_scatter({"one": codes, "two": -codes}, labels)
    for axis, shown in zip(figure.axes, (codes.numpy(), -codes.numpy()), strict=True):
        assert np.array_equal(axis.collections[0].get_offsets(), shown)
        assert axis.collections[0].get_array().tolist() == labels.tolist()
        assert [text.get_text() for text in axis.texts] == list("0123456789")
        for digit, text in enumerate(axis.texts):
            median = np.median(shown[labels.numpy() == digit], axis=0)
            assert text.get_position() == pytest.approx(tuple(median))


def test_latent_scatter_leaves_out_one_percent_on_each_side():
    codes = torch.stack([torch.arange(1001.0), torch.arange(1001.0) / 10], 1)[torch.randperm(1001)]
    (axis,) = plotting.latent_scatter({"codes": codes}, torch.arange(1001) % 10).axes
    assert axis.get_xlim() == pytest.approx((10, 990))
    assert axis.get_ylim() == pytest.approx((1, 99))


def test_curves_mark_where_they_are_told_to():
    for axis in plotting.curves({"error": {"M2": [3.0, 2.0]}, "entropy": {"M2": [1.0, 0.5]}}, mark=1.5).axes:
        assert axis.lines[-1].get_xdata() == [1.5, 1.5]


def test_curves_start_at_epoch_one():
    elbo = {"train": [3.0, 2.0, 1.0], "valid": [4.0, 3.0, 2.0]}
    figure = plotting.curves({"elbo": elbo, "error": {"valid": [0.5]}})
    drawn = [{line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in figure.axes]
    assert drawn[0] == {"train": [[1, 3], [2, 2], [3, 1]], "valid": [[1, 4], [2, 3], [3, 2]]}
    assert drawn[1] == {"valid": [[1, 0.5]]}


def test_histograms_count_every_pixel():
    images = torch.rand(50, 784)
    figure = plotting.histograms({"grey": images, "black": torch.zeros(1, 784)})
    grey, black = ([bar.get_height() for bar in axis.patches] for axis in figure.axes)
    assert sum(grey) == images.numel()
    assert black[0] == sum(black) == 784


def test_helpers_return_figures():
    images, codes = torch.rand(4, 784), torch.randn(10, 2)
    for figure in (
        plotting.image_grid(images, 2),
        plotting.image_panels({"a": images}, 2),
        plotting.points_panels({"a": codes, "b": codes}, codes),
        plotting.latent_scatter({"a": codes, "b": codes}, torch.arange(10)),
        plotting.curves({"a": {"b": [1.0]}, "c": {"d": [1.0]}}),
        plotting.histograms({"a": images, "b": images}),
    ):
        assert isinstance(figure, Figure)


def test_learning_curves_are_drawn_against_the_samples_seen():
    panels = {
        "3 latents": {"train": [-120, -110, -100], "test": [-125, -115, -105]},
        "5": {"train": [-1], "test": [-2]},
    }
    figure = plotting.learning_curves(panels, samples_per_epoch=50_000, limits=(-130, 0))
    first, second = figure.axes
    assert [line.get_xdata().tolist() for line in first.lines] == [[50_000, 100_000, 150_000]] * 2
    assert {line.get_label(): line.get_ydata().tolist() for line in first.lines} == panels["3 latents"]
    assert first.get_xscale() == "log"
    assert first.get_ylim() == second.get_ylim() == (-130, 0)
    assert first.get_legend() is not None


def test_densities_are_counts_where_the_samples_lie():
    samples = torch.randn(50_000, 2) * 0.1 + torch.tensor([-4.0, 2.0])
    (axis,) = plotting.densities({"truth": samples}).axes
    (mesh,) = axis.collections
    counts = np.asarray(mesh.get_array()).reshape(80, 130)  # rows upwards in y, columns in x
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    assert abs((column + 0.5) / 10 - 7 + 4) < 0.2
    assert abs((row + 0.5) / 10 - 4 - 2) < 0.2
    assert_close(counts.sum() * 0.1 * 0.1, 1.0, rtol=0, atol=1e-6)
