"""Figures: every helper takes tensors and returns a Matplotlib Figure; none knows a model."""

from itertools import cycle

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from torch.distributions import Normal
from torch.nn.utils.rnn import pad_sequence

# Ten colors that color-blind readers can tell apart (Petroff 2021).
COLORS = plt.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]
WIDTH = 8.4  # of a figure, in inches


def class_colors(num_classes):
    """Return one color for each class: COLORS, with black for the darker of its two grays; beyond ten, a rainbow."""
    if num_classes > len(COLORS):
        return plt.colormaps["turbo"].resampled(num_classes).colors
    return ["black" if color == "#717581" else color for color in COLORS[:num_classes]]


def latent_grid(n):
    """Return (n², 2) points: n quantiles of Normal(0, 1) on each axis.

    Quantiles (the inverse Gaussian CDF at even steps) give each cell the same prior mass (Kingma & Welling 2013,
    figure 4). The first latent grows to the right, the second upwards: row by row from the top, as an image is drawn.
    """
    steps = Normal(0, 1).icdf((torch.arange(n) + 0.5) / n)
    return torch.cartesian_prod(steps.flip(0), steps).flip(1)


def tile(images, columns):
    """Return one picture (H, W) or (H, W, 3) of images (N, 1, H, W) or (N, 3, H, W), laid out row by row."""
    rows = pad_sequence(images.detach().cpu().split(columns), batch_first=True)  # (rows, columns, C, H, W)
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(2).numpy()


def _show_tiles(axis, images, columns, title="", interpolation="none"):
    axis.imshow(tile(images, columns).clip(0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation=interpolation)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11)
    axis.spines[:].set_visible(False)


def image_grid(images, columns, title="", row_names=(), column_names=(), size=1):
    """Show images (N, C, H, W) as one tiled picture, `size` times as large; names of rows stand to their left."""
    rows, (height, width) = -(-len(images) // columns), images.shape[-2:]
    across = size * min(0.45, 6.5 / columns)  # of an image, in inches
    down = across * height / width
    beside, above = 0.9 if row_names else 0, 0.35 * bool(title) + 0.25 * bool(column_names)
    figure, axis = plt.subplots(figsize=(across * columns + beside, down * rows + above))
    _show_tiles(axis, images, columns, title)
    if row_names:
        axis.set_yticks([height * row + (height - 1) / 2 for row in range(rows)], row_names)
    if column_names:
        axis.xaxis.tick_top()
        axis.set_xticks([width * column + (width - 1) / 2 for column in range(columns)], column_names)
    axis.tick_params(length=0)
    figure.tight_layout(pad=0.3)
    return figure


def image_panels(panels, columns, panels_per_row=None, interpolation="none"):
    """Show several tiled pictures beside each other: `panels` maps titles to images (N, C, H, W)."""
    across = panels_per_row or len(panels)
    down = -(-len(panels) // across)
    first = next(iter(panels.values()))
    height = WIDTH / across * (-(-len(first) // columns) * first.shape[-2]) / (columns * first.shape[-1]) + 0.35
    figure, axes = plt.subplots(down, across, figsize=(WIDTH, down * height), squeeze=False)
    for axis, (title, images) in zip(axes.flat, panels.items(), strict=False):
        _show_tiles(axis, images, columns, title, interpolation)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout(pad=0.4, w_pad=1.5)
    return figure


def spread(points, distance):
    """Return `points` (N, 2), those that are closer than `distance` pushed apart, a little each in a hundred rounds."""
    for _ in range(100):
        steps = points.unsqueeze(1) - points  # (N, N, 2)
        gaps = steps.norm(dim=2, keepdim=True).clamp(min=1e-9)
        points = points + ((distance - gaps).clamp(min=0) / 2 * steps / gaps).sum(1)
    return points


def latent_scatter(panels, labels):
    """Show 2-D codes beside each other, colored and numbered by class: `panels` maps titles to codes (N, 2).

    A number stands at its class's median, or where that place is taken a little off, with a line to it. The axes leave
    out the outermost 1 % of the codes on each side.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.6), layout="constrained", squeeze=False)
    classes, index = labels.cpu().unique(return_inverse=True)
    classes = classes.tolist()
    colors = class_colors(len(classes))
    for axis, (title, codes) in zip(axes.flat, panels.items(), strict=True):
        codes = codes.cpu()
        dots = axis.scatter(*codes.T, c=index, cmap=ListedColormap(colors), s=3, linewidths=0)
        low, high = codes.quantile(torch.tensor([0.01, 0.99]), dim=0).tolist()
        axis.set(title=title, xlabel="$z_1$", ylabel="$z_2$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        medians = torch.stack([codes[index == n].median(0).values for n in range(len(classes))])
        scale = torch.tensor([high[0] - low[0], high[1] - low[1]])
        places = spread(medians / scale, 0.075) * scale  # a number is a twentieth of a panel wide
        for k, color, median, place in zip(classes, colors, medians.tolist(), places.tolist(), strict=True):
            box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": color}
            line = {"arrowstyle": "-", "color": "black", "linewidth": 0.8, "shrinkB": 0}
            style = {"ha": "center", "va": "center", "fontsize": 10, "weight": "bold", "bbox": box}
            axis.annotate(str(k), median, place, arrowprops=line, **style)
    names = {"ncols": 10, "columnspacing": 1, "handletextpad": 0, "frameon": False, "title": "class"}
    figure.legend(dots.legend_elements(num=None)[0], classes, loc="outside lower center", **names)
    return figure


def curves(panels, marks=(), per_epoch=1, **axes):
    """Show curves: `panels` maps a panel's title to a dict of named curves, each one value per epoch, or {x: value}.

    The horizontal axis counts epochs, or what there are `per_epoch` of in each; `axes` are settings of every panel.
    `marks` maps a curve's name to where a vertical line of its color stands.
    """
    figure, all_axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), sharey="ylim" in axes, squeeze=False)
    for axis, (title, lines) in zip(all_axes.flat, panels.items(), strict=True):
        for (name, values), color in zip(lines.items(), cycle(COLORS), strict=False):
            if not isinstance(values, dict):
                values = {per_epoch * (n + 1): value for n, value in enumerate(values)}
            axis.plot(values.keys(), values.values(), label=name, color=color, linewidth=1.8)
            if name in marks:
                axis.axvline(marks[name], color=color, linestyle=":")
        axis.set(title=title, **({"xlabel": "epoch"} | axes))
        axis.grid(alpha=0.3)
        if "ylim" in axes:
            axis.label_outer()
    several = [axis for axis, lines in zip(all_axes.flat, panels.values(), strict=True) if len(lines) > 1]
    for axis in several[:1]:
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(axis.lines) > 5 else {}
        axis.legend(frameon=False, **beside)
    figure.tight_layout(w_pad=0.4)
    return figure


def graphical_models(graphs, filled):
    """Show directed graphs: `graphs` maps titles to nodes, {name: (x, y)}, and to "a>b …", arrows of p and of q.

    Those of q are dashed and bent. `filled` maps the names of gray nodes to "full" or, half gray, "left".
    """
    figure, axes = plt.subplots(1, len(graphs), figsize=(WIDTH, 2.9), squeeze=False)
    gray = {"markerfacecolor": "0.75", "markerfacecoloralt": "none", "markeredgewidth": 0}
    arrow = {"arrowstyle": "-|>", "shrinkA": 14, "shrinkB": 14, "color": "black"}
    dashed = {"linestyle": (0, (3, 2)), "color": COLORS[0]}
    for axis, (title, (nodes, generative, inference)) in zip(axes.flat, graphs.items(), strict=True):
        for pair in generative.split():
            start, end = (nodes[name] for name in pair.split(">"))
            axis.annotate("", end, start, arrowprops=arrow)
        for pair in inference.split():
            start, end = (nodes[name] for name in pair.split(">"))
            bend = 0.4 if start[0] <= end[0] and start[1] < end[1] else -0.4  # outwards
            axis.annotate("", end, start, arrowprops=arrow | dashed | {"connectionstyle": f"arc3,rad={bend}"})
        for name, place in nodes.items():
            axis.plot(*place, "o", markersize=27, fillstyle=filled.get(name, "none"), **gray)
            axis.plot(*place, "o", markersize=27, fillstyle="none", color="black")
            axis.text(*place, f"${name}$", ha="center", va="center_baseline", fontsize=12)
        axis.set(title=title, xlim=(-1.3, 1.3), ylim=(-0.4, 2.4), aspect="equal")
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    return figure
