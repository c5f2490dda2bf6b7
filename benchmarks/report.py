"""What was measured, as lines of a table and as a figure."""

import matplotlib.pyplot as plt

from vae.plotting import DIGIT_COLORS, WIDTH

HEADER = f"{'':12}{'batch':>6} {'dtype':5} {'threads':>7} {'images/s':>10} {'peak MiB':>9} {'of limit':>9}"
NAMES = {
    "m1": "M1",
    "pythae_m1": "pythae",
    "m2_exact": "M2, all labels",
    "m2_loop": "M2, loop",
    "m2_topk": "M2, 1 + 1 labels",
    "pyro_m2": "Pyro, all labels",
}
PANELS = {"M1": ("m1", "pythae_m1"), "M2": ("m2_topk", "m2_exact", "m2_loop", "pyro_m2")}


def line(r):
    """Return the record `r` as one line below HEADER, with the size that grows where there is one."""
    where = "" if r["device"] == "cpu" else f"  {r['device']}, {r['mode']}"
    grows = "".join(f"  {name} = {r[name]}" for name in r.get("grows", ()))
    return (
        f"{r['what']:12}{r['batch']:6} {r['dtype']:5} {r['threads']:7} {r['images_per_second']:10,.0f} "
        f"{r['peak_mib']:9,.0f} {r['fraction_of_limit']:9.0%}{where}{grows}"
    )


def _bars(axis, records):
    """Draw one bar for each record, and behind it, in grey, how far it could reach."""
    for n, r in enumerate(records):
        rate, limit = r["images_per_second"], r["images_per_second"] / r["fraction_of_limit"]
        color = DIGIT_COLORS[1 if r["what"] in ("pythae_m1", "pyro_m2") else 0]
        axis.barh(n, limit, color="0.9")
        axis.barh(n, rate, color=color, alpha=0.6 if r["dtype"] == "bf16" else 1, height=0.55)
        axis.text(rate, n, f" {rate:,.0f}", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_yticks(range(len(records)), [NAMES[r["what"]] + ", bf16" * (r["dtype"] == "bf16") for r in records])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def throughput(records, batches, threads):
    """Show images per second of training on the CPU, ours and the peers', for each batch size, before their limits."""
    chosen = [r for r in records if (r["device"], r["threads"]) == ("cpu", threads) and r["batch"] in batches]
    panels = [[r for what in names for r in chosen if r["what"] == what] for names in PANELS.values()]
    heights = [len({(r["what"], r["dtype"]) for r in panel}) + 1 for panel in panels]
    options = {"squeeze": False, "sharex": "row", "sharey": "row", "layout": "constrained", "height_ratios": heights}
    figure, axes = plt.subplots(len(panels), len(batches), figsize=(WIDTH, 0.32 * sum(heights) + 0.8), **options)
    for row, panel, model in zip(axes, panels, PANELS, strict=True):
        for axis, batch in zip(row, batches, strict=True):
            _bars(axis, [r for r in panel if r["batch"] == batch])
            axis.set_title(f"{model}, batches of {batch:,}", fontsize=10)
    figure.supxlabel(f"images per second in training, {threads} threads; grey: the limit of each", fontsize=10)
    return figure
