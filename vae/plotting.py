"""Figures: every helper takes tensors and returns a Matplotlib Figure; none knows a model."""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from torch.distributions import Normal

# Ten colours that colour-blind readers can tell apart (Petroff 2021), one per digit.
DIGIT_COLORS = plt.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]
WIDTH = 8.4  # of a figure, in inches


def latent_grid(n, limit=None):
    """Return (n², 2) points: n quantiles of Normal(0, 1) on each axis, or n even steps in [−limit, limit].

    Quantiles (the inverse Gaussian CDF at even steps) give each cell the same prior mass (Kingma & Welling 2013,
    figure 4). The first latent grows to the right, the second upwards: row by row from the top, as an image is drawn.
    """
    steps = torch.linspace(-limit, limit, n) if limit else Normal(0, 1).icdf((torch.arange(n) + 0.5) / n)
    return torch.cartesian_prod(steps.flip(0), steps).flip(1)


def tile(images, columns):
    """Return one 2-D picture of 28×28 images (N, 784) laid out row by row."""
    rows = images.cpu().reshape(-1, columns, 28, 28)  # (rows, columns, 28, 28)
    return rows.transpose(1, 2).reshape(-1, columns * 28).numpy()


def _show_tiles(axis, images, columns, title="", interpolation="none"):
    axis.imshow(tile(images, columns), cmap="gray_r", vmin=0, vmax=1, interpolation=interpolation)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)
    axis.spines[:].set_visible(False)


def image_grid(images, columns, title="", row_names=()):
    """Show images (N, 784) as one tiled picture; `row_names` stand to the left of its rows."""
    rows = len(images) // columns
    size = min(0.45, 6.5 / columns)  # of an image, in inches
    figure, axis = plt.subplots(figsize=(size * columns + 0.9 * bool(row_names), size * rows + 0.35 * bool(title)))
    _show_tiles(axis, images, columns, title)
    if row_names:
        axis.set_yticks([28 * row + 13.5 for row in range(rows)], row_names)
        axis.tick_params(length=0)
    figure.tight_layout(pad=0.3)
    return figure


def image_panels(panels, columns, panels_per_row=None, interpolation="none"):
    """Show several tiled pictures beside each other: `panels` maps titles to images (N, 784)."""
    across = panels_per_row or len(panels)
    down = len(panels) // across
    images_down = len(next(iter(panels.values()))) // columns
    height = WIDTH / across * images_down / columns + 0.35
    figure, axes = plt.subplots(down, across, figsize=(WIDTH, down * height), squeeze=False)
    for axis, (title, images) in zip(axes.flat, panels.items(), strict=True):
        _show_tiles(axis, images, columns, title, interpolation)
    figure.tight_layout(pad=0.4, w_pad=1.5)
    return figure


def points_panels(panels, data):
    """Show 2-D points over the `data` (M, 2) in grey, two panels a row: `panels` maps titles to points (N, 2)."""
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(WIDTH, 5.4), sharex=True, sharey=True)
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=True):
        axis.plot(*data.cpu().T, ".", markersize=2, color="0.75", label="data")
        axis.plot(*points.cpu().T, ".", markersize=2, color=DIGIT_COLORS[0], label="model")
        axis.set(title=title, xlim=(-7, 6), ylim=(-4, 4), aspect="equal")
    axes.flat[0].legend(loc="lower center", markerscale=5, frameon=False)
    figure.tight_layout()
    return figure


def latent_scatter(panels, labels):
    """Show 2-D codes beside each other, coloured and numbered by digit: `panels` maps titles to codes (N, 2).

    The axes leave out the outermost 1 % of the codes on each side.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.6), layout="constrained", squeeze=False)
    labels = labels.cpu()
    for axis, (title, codes) in zip(axes.flat, panels.items(), strict=True):
        codes = codes.cpu()
        dots = axis.scatter(*codes.T, c=labels, cmap=ListedColormap(DIGIT_COLORS), s=3, linewidths=0)
        for digit in range(10):
            x, y = codes[labels == digit].median(0).values.tolist()
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": DIGIT_COLORS[digit]}
            axis.text(x, y, str(digit), ha="center", va="center", fontsize=10, weight="bold", bbox=box)
        low, high = codes.quantile(torch.tensor([0.01, 0.99]), dim=0).tolist()
        axis.set(title=title, xlabel="$z_1$", ylabel="$z_2$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    names = {"ncols": 10, "columnspacing": 1, "handletextpad": 0, "frameon": False, "title": "digit"}
    figure.legend(*dots.legend_elements(), loc="outside lower center", **names)
    return figure


def curves(panels, mark=None):
    """Show curves: `panels` maps a panel's title to a dict of named curves, each one value per epoch.

    A vertical line stands at `mark`.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for (name, values), color in zip(lines.items(), DIGIT_COLORS, strict=False):
            axis.plot(range(1, len(values) + 1), values, label=name, color=color, linewidth=1.8)
        if mark:
            axis.axvline(mark, color="0.5", linestyle=":")
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def learning_curves(panels, samples_per_epoch, limits):
    """Show bounds against samples seen, on a log scale and one vertical scale: `panels` as in `curves`."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for (name, values), color in zip(lines.items(), DIGIT_COLORS, strict=False):
            axis.plot([samples_per_epoch * (n + 1) for n in range(len(values))], values, label=name, color=color)
        axis.set(title=title, xlabel="samples", xscale="log", ylim=limits)
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("bound (nats)")
    axes.flat[0].legend(frameon=False, loc="upper left")
    figure.tight_layout(w_pad=0.4)
    return figure


def densities(panels):
    """Show where 2-D samples lie, as counts on a fine grid: `panels` maps titles to many samples (N, 2)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.1), sharey=True, squeeze=False)
    for axis, (title, samples) in zip(axes.flat, panels.items(), strict=True):
        axis.hist2d(
            *samples.cpu().T.numpy(), bins=(130, 80), range=((-7, 6), (-4, 4)), cmap="Blues", density=True, vmax=0.16
        )
        axis.set(title=title, aspect="equal")
    figure.tight_layout()
    return figure


def histograms(panels):
    """Show how values in [0, 1] are distributed, on a log scale: `panels` maps titles to values."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.6), sharey=True, squeeze=False)
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        axis.hist(values.cpu().flatten().numpy(), bins=32, range=(0, 1), log=True, color=DIGIT_COLORS[0])
        axis.set(title=title, xlabel="intensity")
    axes.flat[0].set_ylabel("pixels")
    figure.tight_layout()
    return figure
