"""What was measured, as lines of a table and as a figure."""

import math
from statistics import median

import matplotlib.pyplot as plt

from experiments.bench.steps import PEERS, THREADS, Case
from vae.plotting import COLORS, WIDTH

HEADER = f"{'':12}{'batch':>6} {'dtype':5} {'threads':>7} {'images/s':>10} {'peak MiB':>9} {'of limit':>9}"
ROW = "{what:12}{batch:6} {dtype:5} {threads:7} {images_per_second:10,.0f} {peak_mib:9,.0f} {fraction_of_limit:9.0%}"
PANELS = {
    "M1": {"m1": "M1", "pythae_m1": "pythae"},
    "M2": {
        "m2_topk": "M2, 1 + 1 labels",
        "m2_exact": "M2, all labels",
        "m2_loop": "M2, loop",
        "pyro_m2": "Pyro, all labels",
    },
}
ANSWERS = {  # name, color, and where the name stands from the end of the longest line
    "quick": ("M2 in stages, 10 epochs", COLORS[0], (-40, -36)),
    "longer": ("36 epochs", COLORS[1], (5, 0)),
    "plain": ("plain M2", "0.65", (5, 0)),
    "pyro": ("Pyro's tutorial", "0.45", (5, 0)),
}


def line(r):
    """Return the record `r` as one line below HEADER, with what of the rest is not as in most cases."""
    rest = ("device", "mode", "num_classes", "z_dim", "num_samples", "x_shape")
    return ROW.format(**r) + "".join(f"  {name} = {r[name]}" for name in rest if r[name] != getattr(Case, name))


def _bars(axis, records, names):
    """Draw one bar for each record, and behind it, in gray, how far it could reach."""
    for n, r in enumerate(records):
        rate, limit = r["images_per_second"], r["images_per_second"] / r["fraction_of_limit"]
        color = COLORS[1 if r["what"] in PEERS else 0]
        axis.barh(n, limit, color="0.9")
        axis.barh(n, rate, color=color, alpha=0.6 if r["dtype"] == "bf16" else 1, height=0.55)
        axis.text(rate, n, f" {rate:,.0f}", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_yticks(range(len(records)), [names[r["what"]] + ", bf16" * (r["dtype"] == "bf16") for r in records])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def throughput(records, batch):
    """Show images per second of training on the CPU, ours and the peers', in batches of one size, and their limits."""
    options = {"sharex": True, "layout": "constrained", "figsize": (WIDTH, 4.2)}
    options |= {"height_ratios": [len(names) for names in PANELS.values()]}
    figure, axes = plt.subplots(len(PANELS), 1, **options)
    for axis, (model, names) in zip(axes, PANELS.items(), strict=True):
        cases = [{"what": what, "device": "cpu", "threads": THREADS, "batch": batch}.items() for what in names]
        _bars(axis, [r for case in cases for r in records if case <= r.items()], names)
        axis.set_title(f"{model}, batches of {batch:,}", fontsize=10)
    figure.supxlabel(f"images per second in training, {THREADS} threads; gray: the limit of each", fontsize=10)
    return figure


def minutes_to(threshold, curve):
    """Return the CPU minutes after which the error is first at most `threshold`, infinity if it never is."""
    return min((minutes for minutes, error in curve if error <= threshold), default=math.inf)


def times_to_errors(results, thresholds):
    """Return a line for each method and threshold: the median minutes over its draws, or where it ends."""
    lines = []
    for name in dict.fromkeys(result["method"] for result in results):
        curves = [result["curve"] for result in results if result["method"] == name]
        end, error = (median(curve[-1][n] for curve in curves) for n in (0, 1))
        for threshold in thresholds:
            minutes = median(minutes_to(threshold, curve) for curve in curves)
            missed = f"not reached in {end:.1f} minutes, is at {error:.2f} %"
            reached = f"{minutes:.1f} minutes" if minutes < math.inf else missed
            lines.append(f"{name}, {threshold} %, median of {len(curves)} draws: {reached}")
    return lines


def errors_over_time(results, thresholds):
    """Show test error against CPU minutes: a line for each draw of labels, a name at the longest of each method."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for method in dict.fromkeys(result["method"] for result in results if result["method"] in ANSWERS):
        curves = [result["curve"] for result in results if result["method"] == method]
        name, color, offset = ANSWERS[method]
        for curve in curves:
            axis.plot(*zip(*curve, strict=True), color=color, linewidth=1.2)
        end = max(curve[-1] for curve in curves)
        side = "left" if offset[0] > 0 else "right"
        axis.annotate(name, end, offset, textcoords="offset points", color=color, va="center", ha=side)
    for threshold in thresholds:
        axis.axhline(threshold, color="0.5", linewidth=0.8, linestyle=":")
    ticks = [2, *thresholds, 10, 20, 50, 90]
    axis.set(yscale="log", xlabel="CPU minutes of training, one thread", ylabel="test error (%)")
    axis.set_yticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.margins(x=0.2)
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
