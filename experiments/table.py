"""The tables and numbers of README and docs/, and three figures, from results/: python -m experiments table.

What stands there between two markers, with a name of `values`, is written anew.
"""

import re
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
from scipy.stats import rankdata

from experiments import UserError, m1, own
from experiments.methods import ABLATIONS, BY_KEY, COMPARISON, STORY
from experiments.own_data import AFTER_THE_RULE
from experiments.runner import write_figure
from experiments.ssl import read_results
from vae.checkpoint import atomic_path
from vae.plotting import COLORS, WIDTH

RESULTS, FIGURE = Path("results/ssl/mnist"), Path("_images/m2-error-vs-labels.png")
M1M2_FIGURE, M1M2_ROWS = Path("_images/m1m2-over-updates.png"), ("m1m2", "m1m2_short")
OWN, OWN_FIGURE = Path("results/own"), Path("_images/own-data.png")
MARKED = re.compile(r"(<!-- begin (\S+): make table -->)(.*?)(<!-- end \2 -->)", re.DOTALL)

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
# Test error in % of M1+M2 in a public log, one draw: https://github.com/jonemeth/generative-models.
LOG = {100: 2.80, 600: 2.35, 1000: 2.45, 3000: 2.44}
UPDATES = (500, 2500, 5000, 10_000, 15_000, 30_000, 100_000, 160_000, 300_384)  # at which the plain recipe is shown
# In the figure, by the marker of each, from the most errors with 100 labels to the fewest.
DRAWN = {"mlp": "o", "m1svm": "v", "m1mlp": "^", "m1spread": "D", "m1m2": "o", "m2": "o"}
MODELS = {"m2": COLORS[0], "m1m2": COLORS[1]}  # beside which the paper's errors are drawn


def spread(values):
    """Return (mean,) of one value, (mean, standard deviation) of several."""
    return (mean(values), stdev(values)) if len(values) > 1 else (values[0],)


def written(values, digits=2):
    """Return mean and, where there is one, standard deviation as text, at least to a tenth if that is below 1."""
    texts = [f"{value:.{digits}f}" for value in values]
    if len(values) > 1 and values[1] < 1 and digits == 0:
        texts[1] = f"{values[1]:.1f}"
    return " ± ".join(texts).replace("-", "−") or "–"


def errors_by_count(results):
    """Return {number of labels: (mean, standard deviation) of the test error in %} of one method."""
    return {n: spread([cell["test_error"] for cell in cells]) for n, cells in results.items()}


def rows(header, *lines):
    """Return a Markdown table; a line is a list of texts."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def markdown(results, paper=PAPER, others=OTHERS):
    """Return the comparison's table: ours with its number of splits, and published numbers, per number of labels."""
    counts, lines = sorted({n for cells in results.values() for n in cells}), []
    for key, cells in results.items():
        errors, first = errors_by_count(cells), cells[min(cells)]
        ours = [f"**{written(errors[n])}** ({len(cells[n])})" if n in cells else "–" for n in counts]
        minutes, updates = (mean(cell[what] for cell in first) for what in ("cpu_minutes", "updates"))
        lines.append([BY_KEY[key].title, *ours, f"{minutes:.1f}, {updates:,.0f}" if updates else f"{minutes:.1f}"])
        if key in paper:
            title = "– the paper, M1 + TSVM" if key == "m1svm" else "– the paper"
            lines.append([title, *(written(paper[key].get(n, ())) for n in counts), ""])
    lines += [[title, *(written(errors.get(n, ())) for n in counts), ""] for title, errors in others.items()]
    return rows(["test error (%)", *(f"{n:,} labels" for n in counts), "CPU minutes, updates"], *lines)


def points_above(cells, others):
    """Return how many points each of `cells` errs more than that of `others` with the same draw, where there is one."""
    errors = {other["split"]: other["test_error"] for other in others}
    return [cell["test_error"] - errors[cell["split"]] for cell in cells if cell["split"] in errors]


def ablations_markdown(results):
    """Return the table of the short M2 with 100 labels and one part changed, compared on the same draws of labels."""
    cells, lines = {key: cells[100] for key, cells in results.items() if 100 in cells}, []
    for key, changed in cells.items():
        error = written(spread([cell["test_error"] for cell in changed]))
        above = points_above(changed, cells.get("m2_short", []))
        compared = written(spread(above), 1) if above and key != "m2_short" else "–"
        minutes = mean(cell["cpu_minutes"] for cell in changed)
        lines.append([BY_KEY[key].title, f"**{error}** ({len(changed)})", compared, f"{minutes:.1f}"])
    return rows(["100 labels", "test error (%)", "points above the first row, draw by draw", "CPU minutes"], *lines)


def m1m2_markdown(results):
    """Return the table of M1+M2 beside its short run, on the same draws of labels, and the KL divergence of z2."""
    counts, lines = sorted(results["m1m2"]), []
    for key, cells in results.items():
        errors = errors_by_count(cells)
        lines.append([BY_KEY[key].title, *(f"**{written(errors[n])}**" if n in errors else "–" for n in counts)])
    gains, kl = [], []
    for n in counts:
        gained = points_above(results["m1m2_short"].get(n, []), results["m1m2"][n])
        gains.append(written(spread(gained) if gained else ()))
        kl.append(written(spread([cell["kl_of_style"][-1] for cell in results["m1m2"][n]]), 1))
    lines += [["points gained, draw by draw", *gains], ["KL divergence of z2 at the end (nats)", *kl]]
    lines.append(["a public log of the same model, one draw", *(f"{LOG[n]:.2f}" for n in counts)])
    return rows(["test error (%)", *(f"{n:,} labels" for n in counts)], *lines)


def m1m2_over_updates(results):
    """Show validation error and KL divergence of z2 against updates, the mean over draws, the short run dashed."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained")
    for key, line in zip(M1M2_ROWS, ("-", "--"), strict=True):
        for color, (n, cells) in zip(COLORS, sorted(results.get(key, {}).items()), strict=False):
            for axis, what in zip(axes, ("curve", "kl_of_style"), strict=True):
                known = [cell for cell in cells if cell.get(what)]  # the KL divergence, of a few short runs alone
                if not known:
                    continue
                means = [mean(values) for values in zip(*(cell[what] for cell in known), strict=True)]
                steps = known[0]["updates"] / known[0]["epochs"] / 1000
                label = f"{n:,} labels" if line == "-" else None
                axis.plot([steps * (i + 1) for i in range(len(means))], means, line, color=color, label=label)
    axes[1].plot([], [], "--", color="0.4", label="short")
    axes[0].set(title="error on validation images (%)", ylim=(2, 8), xlabel="updates (thousands)")
    axes[1].set(title="KL divergence of z2 (nats)", ylim=(0, None), xlabel="updates (thousands)")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def errors_after(cells):
    """Return the errors on validation images after UPDATES, of each draw of labels, as the cells of a line."""
    columns = []
    for updates in UPDATES:
        epochs = [(cell["curve"], round(updates * cell["epochs"] / cell["updates"])) for cell in cells]
        digits = int(updates == UPDATES[-1])
        columns.append("; ".join(f"{curve[n - 1]:.{digits}f}" for curve, n in epochs if n <= len(curve)) or "–")
    return " | ".join(columns)


def m1_values(group):
    """Return {what: text} of a group of M1's runs."""
    runs = m1.read_results(group, RESULTS.parents[1] / "m1")
    active, seeds = sorted({run["active_latents"] for run in runs}), f" ({len(runs)} seeds)"
    values = {
        "elbo": written(spread([run["test_elbo"] for run in runs]), 0 if "variance" in group else 2) + seeds,
        "minus-log-p": written(spread([-run["test_log_likelihood"] for run in runs])) + seeds,
        "active": f"{active[0]} … {active[-1]}" if len(active) > 1 else f"{active[0]}",
    }
    if "truth" in runs[0]:
        values["gap"] = written(spread([run["truth"] - run["test_log_likelihood"] for run in runs]), 3) + seeds
    return values


def own_error(results, method):
    """Return a method's test error over the draws of a cell, as a text."""
    return written(spread([result["test_errors"][method] for result in results]), 1)


def own_markdown(cells):
    """Return the table of `experiments.own`: each method's error in each cell, and how often the guard takes M2."""
    lines = []
    for (name, count), results in cells.items():
        errors = [own_error(results, method) for method in own.METHODS]
        by_m2 = sum(result["chosen"] != own.LABELS for result in results)
        lines.append([f"{name}, {count}", *errors, f"{by_m2} of {len(results)}"])
    header = ["test error (%); data, labels a class", *own.METHODS, "draws in which the guard takes M2"]
    return rows(header, *lines)


def own_values(cells):
    """Return {name: text} of the error of M2Classifier in each cell, and of its labels alone."""
    return {
        f"own-{name}-{count}{end}": own_error(results, method)
        for (name, count), results in cells.items()
        for end, method in (("", own.GUARDED), ("-alone", own.LABELS))
    }


def points_over_labels(results, method):
    """Return how many points a method errs more than the labels alone, in each of `results`."""
    return [result["test_errors"][method] - result["test_errors"][own.LABELS] for result in results]


def harm_and_help(results, method):
    """Return in how many of `results` a method errs more than the labels alone, in how many less, as a text."""
    points = points_over_labels(results, method)
    more, less = [p for p in points if p > 1], [-p for p in points if p < -1]
    return f"""{method} errs more in {len(more)} ({sum(more):.0f} points in all, at most {max(points):.1f}) \
and less in {len(less)} ({sum(less):.0f} points in all)"""


def own_summary(cells):
    """Return each method's mean rank, how often M2 does harm, guarded or not, and how often the guarded helps most."""
    means = {method: own.mean_errors(cells, method) for method in own.METHODS}
    ranks = rankdata([*means.values()], axis=0).mean(1).tolist()
    above = {cell: points_over_labels(results, own.GUARDED) for cell, results in cells.items() if len(results) > 1}
    by_m2 = [cell for cell in above if any(result["chosen"] != own.LABELS for result in cells[cell])]
    error = {cell: stdev(points) / len(points) ** 0.5 for cell, points in above.items()}
    worse = [cell for cell in by_m2 if mean(above[cell]) > error[cell] + 1e-9]  # rounding, where they equal
    names = f": {'; '.join(f'{name}, {count}' for name, count in worse)}" if worse else ""
    by_cell = [dict(zip(means, errors, strict=True)) for errors in zip(*means.values(), strict=True)]
    helped = [errors for errors in by_cell if min(errors[m] for m in own.SEMI_SUPERVISED) < errors[own.LABELS]]
    best = [e for e in helped if e[own.GUARDED] < min(e[own.SPREADING], e[own.TRAINING])]
    draws = [result for results in cells.values() for result in results]
    later = [result for result in draws if result["split"] >= AFTER_THE_RULE]
    in_cells = ((cell, result["test_errors"]) for cell, results in cells.items() for result in results)
    missed, (name, count) = max((errors[own.GUARDED] - errors[own.UNGUARDED], cell) for cell, errors in in_cells)
    unsure = {m: mean(d["calibration_errors"][m] for d in draws) for m in (own.LABELS, own.UNGUARDED, own.GUARDED)}
    table = rows([f"{len(cells)} cells", *own.METHODS], ["mean rank, 1 the best", *(f"{rank:.1f}" for rank in ranks)])
    return f"""{table}

- Of {len(above)} cells with two draws or more, M2 answers in {len(by_m2)} at least once; there {own.GUARDED} is worse \
than {own.LABELS}, by more than one standard error of the difference, in {len(worse)}{names}.
- Where some semi-supervised method, M2 among them, beats {own.LABELS}, {own.GUARDED} beats {own.SPREADING} and \
{own.TRAINING} in {len(best)} of {len(helped)} cells.
- Beside {own.LABELS}, in {len(draws)} draws, by more than a point: {harm_and_help(draws, own.UNGUARDED)}; \
{harm_and_help(draws, own.GUARDED)}. The largest gain that the guard misses is {missed:.1f} points, \
on a draw of {name}, {count}.
- The guard's rule was settled before draw {AFTER_THE_RULE}. In the {len(later)} draws from there on: \
{harm_and_help(later, own.UNGUARDED)}; {harm_and_help(later, own.GUARDED)}.
- The calibration error, in the mean over all draws: {", ".join(f"{m} {e:.1f} %" for m, e in unsure.items())}."""


def errors_against_labels(results):
    """Show test error against the number of labels, with bars of one standard deviation; baselines are gray."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.8), layout="constrained")

    def draw(errors, line, **style):
        means = [values[0] for values in errors.values()]
        deviations = [values[1] if len(values) > 1 else 0 for values in errors.values()]
        axis.errorbar(list(errors), means, deviations, fmt=line, capsize=3, **style)

    for key in (key for key in DRAWN if key in results):
        title, style = BY_KEY[key].title, {"color": MODELS.get(key, "0.6"), "linewidth": 2.2 if key in MODELS else 1}
        draw(errors_by_count(results[key]), f"{DRAWN[key]}-", label=title, **style)
        if key in MODELS:
            draw(PAPER[key], "s:", label=f"{title} in the paper", alpha=0.6, **style)
    axis.legend(frameon=False)
    counts = sorted({n for cells in (*results.values(), PAPER["m2"]) for n in cells})
    axis.set(xscale="log", yscale="log", xlabel="labelled images, of 50,000", ylabel="test error (%)")
    axis.set_xticks(counts, [f"{n:,}" for n in counts])
    axis.set_yticks([2, 3, 5, 10, 20, 30], ["2", "3", "5", "10", "20", "30"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    return figure


def values():
    """Return {name: text} of all tables and numbers. UserError where results lack."""
    results = read_results(RESULTS, COMPARISON)
    if not results:
        raise UserError(f"there are no results in {RESULTS.absolute()}; run python -m experiments ssl first")
    tables = {
        "comparison": markdown(results),
        "ablations": ablations_markdown(read_results(RESULTS, ["m2_short", *ABLATIONS])),
        "fashion": markdown(read_results(RESULTS.parent / "fashion-mnist", COMPARISON), {}, {}),
    }
    both = {key: results[key] for key in M1M2_ROWS if key in results}
    if len(both) == 2:
        tables["m1m2"] = m1m2_markdown(both)
    cells = own.read_results(OWN)
    tables |= {"own": own_markdown(cells), "own-summary": own_summary(cells)} | own_values(cells)
    errors = {f"{key}-{n}": written(e) for key, cells in results.items() for n, e in errors_by_count(cells).items()}
    story = read_results(RESULTS, STORY)
    curves = {key: f"{STORY[key].title} (`{key}`) | {errors_after(cells[100])}" for key, cells in story.items()}
    groups = [group for group in m1.GROUPS if not group.startswith("latents")]
    runs = {f"{group}-{what}": text for group in groups for what, text in m1_values(group).items()}
    return tables | errors | curves | runs


def with_values(text, values):
    """Return a page's text with `values`, {name: text}, between the markers of their names.

    Raises ValueError for markers that are no pair, UserError for those of no value.
    """

    def fresh(match):
        begin, name, _, end = match.groups()
        if name not in values:
            raise UserError(f"results/ has nothing to show as {name}; train it first")
        return begin + (f"\n{values[name]}\n" if "\n" in values[name] else values[name]) + end

    renewed, pairs = MARKED.subn(fresh, text)
    if not pairs == text.count("<!-- begin ") == text.count("<!-- end "):
        raise ValueError("each marker that begins needs one of the same name that ends")
    return renewed


def write():
    """Write the figures, and all values into README and docs/. UserError where there is nothing to show."""
    known = values()
    pages = [Path("README.md"), *Path("docs").glob("*.md")]
    texts = {page: with_values(page.read_text(), known) for page in pages}  # all, before anything is written
    write_figure(errors_against_labels(read_results(RESULTS, DRAWN)), FIGURE)
    write_figure(m1m2_over_updates(read_results(RESULTS, M1M2_ROWS)), M1M2_FIGURE)
    write_figure(own.against_labels_alone(own.read_results(OWN)), OWN_FIGURE)
    for page, text in texts.items():
        with atomic_path(page) as partial:
            partial.write_text(text)
    print(f"README.md, docs/*.md and three figures show {len(known)} tables and numbers")
