"""Grids, tilings and dots: where each thing is drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close
from torchvision.utils import make_grid

from vae import plotting
from vae.plotting import latent_grid, spread, tile


@pytest.mark.parametrize("n", [2, 5, 20])
def test_latent_grid_gives_each_cell_the_same_prior_mass(n):
    quantiles = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).float()
    grid = latent_grid(n).view(n, n, 2)  # (row, column, latent)
    for i in range(n):
        assert_close(grid[i, :, 0], quantiles)  # the first latent grows to the right
        assert_close(grid[:, i, 1], quantiles.flip(0))  # the second upwards


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 3, 4, 9])
def test_tile_puts_images_where_torchvision_does_in_their_colors_and_leaves_what_is_missing_empty(channels, columns):
    images = torch.rand(7, channels, 5, 4)
    expected = make_grid(images, nrow=columns, padding=0)[[0] if channels == 1 else slice(None)]
    assert np.array_equal(tile(images, columns), expected.permute(1, 2, 0).squeeze(2))


def test_points_that_are_too_close_are_spread_and_the_others_stay():
    crowd, apart = 0.1 * torch.randn(10, 2), torch.tensor([[5.0, 0.0], [5.0, 1.1]])
    placed = spread(torch.cat([crowd, apart]), distance=1)
    assert torch.nn.functional.pdist(placed).min() > 0.95
    assert_close(placed[10:], apart)


@pytest.mark.parametrize("num_classes", [3, 14])
def test_latent_scatter_points_from_each_number_to_its_class_median_in_a_color_of_its_own(num_classes):
    """Whose names need not be 0…K − 1."""
    labels, codes = torch.arange(num_classes).square().repeat(7), torch.randn(7 * num_classes, 2)
    (axis,) = plotting.latent_scatter({"one": codes}, labels).axes
    (dots,) = axis.collections
    assert np.array_equal(dots.get_offsets(), codes)
    assert len(np.unique(dots.to_rgba(dots.get_array()), axis=0)) == num_classes
    ends = {number.get_text(): number.xy for number in axis.texts}
    medians = {str(k): np.median(codes[labels == k], axis=0) for k in labels.unique().tolist()}
    assert ends == {name: pytest.approx(tuple(median)) for name, median in medians.items()}


def test_names_stand_in_the_middle_of_their_columns_of_images():
    (axis,) = plotting.image_grid(torch.rand(6, 1, 4, 5), columns=3, column_names="abc").axes
    assert [(text.get_text(), text.get_position()[0]) for text in axis.get_xticklabels()] == [
        ("a", 2),
        ("b", 7),
        ("c", 12),
    ]


def test_rows_and_panels_need_not_be_full():
    images = torch.rand(7, 1, 4, 5)
    (axis,) = plotting.image_grid(images, columns=4, row_names="ab").axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    figure = plotting.image_panels(dict.fromkeys("abc", images), columns=8, panels_per_row=2)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    assert not figure.axes[3].axison


def test_curves_lie_at_the_epochs_or_where_they_say_and_a_mark_has_its_curves_color():
    lines = {"every": [3.0, 2.0], "some": {5: 1.0, 50: 0.5}}
    (axis,) = plotting.curves({"error": lines}, marks={"some": 7}, per_epoch=10).axes
    every, some, mark = axis.lines
    assert every.get_xydata().tolist() == [[10, 3], [20, 2]] and some.get_xydata().tolist() == [[5, 1], [50, 0.5]]
    assert mark.get_xdata() == [7, 7] and mark.get_color() == some.get_color() != every.get_color()


def test_a_graph_has_an_arrow_for_each_pair_dashed_where_it_infers_and_grays_what_is_observed():
    graphs = {"M1": ({"z": (0, 1), "x": (0, 0)}, "z>x", "x>z")}
    (axis,) = plotting.graphical_models(graphs, {"x": "full"}).axes
    arrows = [text for text in axis.texts if text.get_text() == ""]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [((0, 1), (0, 0)), ((0, 0), (0, 1))]
    assert [arrow.arrow_patch.get_linestyle() == "solid" for arrow in arrows] == [True, False]
    assert [line.get_fillstyle() for line in axis.lines] == ["none", "none", "full", "none"]
