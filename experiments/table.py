"""The comparison's figure and the tables of docs/, from results/ssl: python -m experiments table."""

from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt

from experiments.runner import UserError, write_figure
from experiments.ssl import read_results
from vae.checkpoint import atomic_path
from vae.plotting import COLORS, WIDTH

RESULTS, DOCS = Path("results/ssl/mnist"), Path("docs")
BEGIN, END = "<!-- begin {}: make table -->", "<!-- end {} -->"

# Test error in %, mean and, where given, standard deviation: Table 1 of Kingma et al. 2014, arXiv:1406.5298.
PAPER = {
    "mlp": {100: (25.81,), 600: (11.44,), 1000: (10.7,), 3000: (6.04,)},
    "m1svm": {100: (11.82, 0.25), 600: (5.72, 0.05), 1000: (4.24, 0.07), 3000: (3.49, 0.04)},
    "m2": {100: (11.97, 1.71), 600: (4.94, 0.13), 1000: (3.60, 0.56), 3000: (3.92, 0.63)},
    "m1m2": {100: (3.33, 0.14), 600: (2.59, 0.05), 1000: (2.40, 0.02), 3000: (2.18, 0.04)},
}
OTHERS = {  # published by others, of more layers, or of no VAE
    "SDGM: a VAE of two stochastic layers, with skips (Maaløe et al. 2016)": {100: (1.32, 0.07)},
    "ADGM: with an auxiliary variable instead (the same paper)": {100: (0.96, 0.02)},
    "virtual adversarial training (Miyato et al. 2018)": {100: (1.36,)},
    "ladder network (Rasmus et al. 2015)": {100: (1.06,)},
}
NAMES = {
    "mlp": "labels only: MLP",
    "m1mlp": "linear probe on M1's encoder",
    "m1knn": "M1 + nearest neighbour",
    "m1svm": "M1 + SVM",
    "m1spread": "M1 + label spreading",
    "m2": "M2",
    "m2_longer": "M2, 75 unfrozen epochs instead of 15",
    "m1m2": "M1+M2 as the paper draws it",
    "m1m2_relu": "M1+M2 as drawn, M1 with ReLU",
    "m1m2_joint": "M1+M2, ten latents, 16 joint epochs",
    "m1m2_joint_longer": "M1+M2, ten latents, 64 joint epochs",
    "m1m2_skips": "M1+M2 with skips, 48 joint epochs",
}
VARIANT_NAMES = {
    "m2": "as it is",
    "m2_never_frozen": "without the stage in which the classifier is frozen",
    "m2_small_embeddings": "label embeddings start at Normal(0, 0.1²) instead of 3²",
    "m2_one_layer": "one hidden layer in encoder and decoder instead of two",
    "m2_from_scratch": "the classifier from scratch instead of with M1's layers",
    "m2_weak_labels": "α = 0.1 N, as in the paper, instead of N",
    "m2_naive": "all five: M2 trained naively",
    "m2_naive_exact": "the same, the sum over labels exact",
    "m2_longer": NAMES["m2_longer"].removeprefix("M2, "),
    "m2_bf16": "layers in bfloat16",
}
TRIAL_NAMES = {
    "m1m2_short": "**M1 of 60 epochs**",
    "m1m2_short_seed_1": "– another start and order of images for M1",
    "m1m2_short_relu": "– ReLU instead of SiLU",
    "m1m2_short_no_prior": "– without the prior on M1's weights",
    "m1m2_short_no_warm_up": "– without KL warm-up, instead of over 20 epochs",
    "m1m2_short_10_latents": "– 10 latents instead of 50",
    "m1m2_short_iwae": "– then 15 epochs of the importance-weighted bound of 10 draws",
    "m1m2": "**M1 of 200 epochs**",
    "m1m2_relu": "– ReLU in M1 instead of SiLU",
    "m1m2_default_start": "– M2's weights start where PyTorch starts them, not at Normal(0, 0.001²)",
    "m1m2_no_prior": "– without the prior on M2's weights",
    "m1m2_silu": "– SiLU in M2, too, instead of ReLU",
    "m1m2_strong_labels": "– α = N instead of 0.1 N",
    "m1m2_one_scale": "– one scale for all latents in M2's decoder, not one each",
    "m1m2_50_labeled": "– 50 labelled and 450 unlabelled rows in a batch, not 1 and 499",
}
LABELS = {  # at the ends of the figure's lines, and how many points higher
    "mlp": ("labels only", 0),
    "m1knn": ("M1 + nearest neighbour", 0),
    "m1svm": ("M1 + SVM", 8),
    "m2": ("M2", 0),
    "m1m2": ("M1+M2", -4),
    "m1m2_skips": ("M1+M2 with skips", 0),
}
LINE_COLORS = dict(zip(("m2", "m1m2", "m1m2_skips"), COLORS, strict=False))


def spread(values):
    """Return (mean,) of one value, (mean, standard deviation) of several."""
    return (mean(values), stdev(values)) if len(values) > 1 else (values[0],)


def test_errors(results):
    """Return {labels: (mean, standard deviation) of the test error in %} of one method."""
    return {n: spread([cell["test_error"] for cell in cells]) for n, cells in results.items()}


def markdown(results, paper=PAPER, others=OTHERS):
    """Return the comparison's table: ours with its number of splits, and published numbers, per number of labels."""
    counts = sorted({n for cells in results.values() for n in cells})
    lines = ["| test error (%) | " + " | ".join(f"{n:,} labels" for n in counts) + " | CPU minutes, updates |"]
    lines.append("| --- |" + " --- |" * (len(counts) + 1))
    for method, cells in results.items():
        ours = test_errors(cells)
        entries = [f"**{_format(ours[n])}** ({len(cells[n])})" if n in ours else "–" for n in counts]
        first = cells[min(cells)]
        minutes, updates = (mean(cell[key] for cell in first) for key in ("cpu_minutes", "updates"))
        cost = f"{minutes:.1f}, {updates:,.0f}" if updates else f"{minutes:.1f}"
        lines.append(f"| {NAMES[method]} | {' | '.join(entries)} | {cost} |")
        if method in paper:
            published = [_format(paper[method][n]) if n in paper[method] else "–" for n in counts]
            name = "the paper, M1 + TSVM" if method == "m1svm" else "the paper"
            lines.append(f"| – {name} | {' | '.join(published)} | |")
    for name, errors in others.items():
        lines.append(f"| {name} | {' | '.join(_format(errors[n]) if n in errors else '–' for n in counts)} | |")
    return "\n".join(lines)


def variants_markdown(results):
    """Return the table of M2 with 100 labels and something changed: `results` of the methods in `VARIANT_NAMES`."""
    lines = ["| M2, 100 labels | test error (%) | M2 as it is, same draws | CPU minutes |", "| --- | --- | --- | --- |"]
    variants = {method: by_labels[100] for method, by_labels in results.items() if 100 in by_labels}
    whole = {cell["split"]: cell["test_error"] for cell in variants.get("m2", [])}
    for method, cells in variants.items():
        error = _format(spread([cell["test_error"] for cell in cells]))
        same = [whole[cell["split"]] for cell in cells if cell["split"] in whole]
        same = _format(spread(same)) if same else "–"
        minutes = mean(cell["cpu_minutes"] for cell in cells)
        lines.append(f"| {VARIANT_NAMES[method]} | **{error}** ({len(cells)}) | {same} | {minutes:.1f} |")
    return "\n".join(lines)


def trials_markdown(results):
    """Return the table of M1+M2 with one thing changed: `results` of the methods in `TRIAL_NAMES`, of one draw."""
    columns = "M1+M2, 100 labels", "M1's ELBO, active latents", "M1+M2's bound", "validation error (%)", "CPU minutes"
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " --- |" * (len(columns) - 1)]
    for method, [cell] in ((method, by_labels[100]) for method, by_labels in results.items() if 100 in by_labels):
        m1 = f"{cell['m1_valid_elbo']:.1f}, {cell['m1_active_latents']}"
        numbers = f"{m1} | {cell['valid_bound']:.1f} | {cell['valid_error']:.2f} | {cell['cpu_minutes']:.1f}"
        lines.append(f"| {TRIAL_NAMES[method]} | {numbers.replace('-', '−')} |")
    return "\n".join(lines)


def _format(values):
    return " ± ".join(f"{value:.2f}" for value in values)


def _error_bars(axis, errors, **appearance):
    means = [values[0] for values in errors.values()]
    deviations = [values[1] if len(values) > 1 else 0 for values in errors.values()]
    axis.errorbar(list(errors), means, deviations, capsize=3, **appearance)


def errors_against_labels(results):
    """Show test error against the number of labels, ours with error bars of one standard deviation, and the paper's.

    Longer runs and other variants are left to the table; baselines are gray.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.8), layout="constrained")
    for method, cells in ((method, cells) for method, cells in results.items() if method in LABELS):
        style = {"color": LINE_COLORS.get(method, "0.6"), "linewidth": 2.2 if method in LINE_COLORS else 1}
        errors = test_errors(cells)
        _error_bars(axis, errors, fmt="o-", label=NAMES[method], **style)
        last = max(errors)
        text, higher = LABELS[method]
        offset = {"xytext": (8, higher), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axis.annotate(text, (last, errors[last][0]), color=style["color"], **offset)
        if method in PAPER and method in LINE_COLORS:
            _error_bars(axis, PAPER[method], fmt="s:", alpha=0.6, **style)
    axis.plot([], [], "s:", color="0.4", label="the paper")
    axis.plot([], [], "o-", color="0.4", label="ours")
    axis.legend(handles=axis.lines[-2:], frameon=False)
    axis.set(xscale="log", yscale="log", xlabel="labelled images, of 50,000", ylabel="test error (%)")
    ticks = sorted({n for cells in (*results.values(), *PAPER.values()) for n in cells})
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlim(right=10_000)  # room for the names
    percent = (2, 3, 5, 10, 20, 30)
    axis.set_yticks(percent, percent)
    axis.set_yticks([], minor=True)
    axis.grid(alpha=0.3)
    return figure


def replace_table(text, name, table):
    """Return `text` with what stands between the markers of that name replaced.

    Raises ValueError unless both are there, once, in order.
    """
    opening, closing = BEGIN.format(name), END.format(name)
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end) or text.count(opening) > 1 or text.count(closing) > 1:
        raise ValueError(f"the text must hold {opening!r} and then {closing!r}, once each")
    return f"{before}{opening}\n{table}\n{closing}{after}"


def tables(folder=RESULTS):
    """Return {page: {name: table}} of the results in `folder`, and beside it in fashion-mnist."""
    fashion = read_results(folder.parent / "fashion-mnist", NAMES)
    trials = read_results(folder, TRIAL_NAMES, splits=(1000,))
    comparison, variants = markdown(read_results(folder, NAMES)), variants_markdown(read_results(folder, VARIANT_NAMES))
    return {
        "few-labels": {"table": comparison, "variants": variants, "fashion": markdown(fashion, {}, {})},
        "trials": {"trials": trials_markdown(trials)},
    }


def with_tables(text, tables):
    """Return the text of a page with its tables, {name: table}."""
    for name, table in tables.items():
        text = replace_table(text, name, table)
    return text


def write(docs=DOCS, images=Path("_images")):
    """Write the figure, and the tables into their pages. UserError where there is nothing to show."""
    results = read_results(RESULTS, NAMES)
    if not results:
        raise UserError(f"there are no results in {RESULTS.absolute()}; run python -m experiments ssl first")
    write_figure(errors_against_labels(results), images / "m2-error-vs-labels.png")
    for name, by_marker in tables(RESULTS).items():
        page = docs / f"{name}.md"
        text = with_tables(page.read_text(), by_marker)
        with atomic_path(page) as partial:
            partial.write_text(text)
    print(f"{docs} and {images / 'm2-error-vs-labels.png'} show {sum(map(len, results.values()))} averages")
