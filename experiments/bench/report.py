"""What was measured, as lines of a table and as a figure."""

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


def throughput(records, batches):
    """Show images per second of training on the CPU, ours and the peers', for each batch size, before their limits."""
    options = {"squeeze": False, "sharex": "row", "sharey": "row", "layout": "constrained"}
    options |= {"height_ratios": [len(names) for names in PANELS.values()], "figsize": (WIDTH, 4.6)}
    figure, axes = plt.subplots(len(PANELS), len(batches), **options)
    for row, (model, names) in zip(axes, PANELS.items(), strict=True):
        for axis, batch in zip(row, batches, strict=True):
            cases = [{"what": what, "device": "cpu", "threads": THREADS, "batch": batch}.items() for what in names]
            _bars(axis, [r for case in cases for r in records if case <= r.items()], names)
            axis.set_title(f"{model}, batches of {batch:,}", fontsize=10)
    figure.supxlabel(f"images per second in training, {THREADS} threads; gray: the limit of each", fontsize=10)
    return figure
