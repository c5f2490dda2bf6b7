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
def test_tile_puts_images_where_torchvision_does_in_their_colors_and_leaves_what_is_missing_black(channels, columns):
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
