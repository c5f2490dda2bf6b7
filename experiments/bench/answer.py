"""Test error against CPU minutes of training, ours and Pyro's tutorial: `python -m experiments bench --answer`.

MNIST with 100 labels, the same draws of them for all, in one thread. M1's training counts, evaluation does not. A
killed command goes on, but for the tutorial's run, which starts anew. Writes results/answer.json and
_images/error-vs-cpu-minutes.png.
"""

import math
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import accumulate
from statistics import median

import matplotlib.pyplot as plt
import torch

from experiments import SMOKE, UserError, runner
from experiments.data import load_data
from experiments.m1 import M1Config
from experiments.methods import M2
from experiments.ssl import draw_task
from vae.evaluation import error_rate
from vae.plotting import COLORS, WIDTH
from vae.recipes import M1Recipe, M2Recipe

NUM_LABELED, THRESHOLDS = 100, (5, 3.33)  # test errors in %; the second is M1+M2's in the paper
LOOKS = 60  # at the tutorial's error, evenly spread over its minutes
SHOWN = {  # in the figure
    "quick": ("M2 in stages, 10 epochs", COLORS[0]),
    "longer": ("M2 in stages, 36 epochs", COLORS[1]),
    "pyro": ("Pyro's tutorial", "0.5"),
}
QUICK = M2(  # a short M1, smaller networks, half of the labels in a batch
    m1=M1Config(hidden_dims=(300, 300), activation="SiLU", recipe=M1Recipe(epochs=10)),
    hidden_dims=(300, 300),
    activation="SiLU",
    labeled_batch_size=50,
    recipe=M2Recipe(frozen_epochs=2, unfrozen_epochs=10),
)


@dataclass(frozen=True)
class Run:
    """What is trained on a draw of labels: `method` to the end of its stages, or the tutorial for `minutes`."""

    name: str
    split: int
    method: M2 | None = None
    minutes: float | None = None

    def smoke(self):
        """Return the run with few epochs, or 0.06 seconds of the tutorial."""
        return replace(self, method=self.method.smoke()) if self.method else replace(self, minutes=1e-3)

    def compute(self, folder):
        """Return the result, with [CPU minutes, test error] at each look, and no model."""
        curve = staged_curve(self, folder) if self.method else tutorial_curve(self)
        curve = [[round(minutes, 5), round(error, 2)] for minutes, error in curve]
        return {"method": self.name, "split": self.split, "cpu_minutes": curve[-1][0], "curve": curve}, None


RUNS = [
    *(Run("quick", split, QUICK) for split in range(5)),
    *(Run("longer", split, runner.with_recipe(QUICK, unfrozen_epochs=36)) for split in range(5)),
    *(Run("pyro", split, minutes=4) for split in range(2)),
]


def staged_curve(run, folder):
    """Train M1, once for all draws, then M2; return M1's minutes plus those of M2, and the error, after each epoch."""
    data, m1_config = load_data("mnist"), run.method.m1
    torch.manual_seed(m1_config.seed)
    m1, before = m1_config.train(data.train_images, runner.STATE / "answer/m1" / runner.digest(m1_config))
    task, test = draw_task(data, NUM_LABELED, run.split, m1, folder), data.part("test")
    _, after, _ = run.method.train(task, lambda m2: {"test_error": error_rate(m2.classify, *test)})
    minutes = list(accumulate(epoch["cpu_seconds"] / 60 for epoch in before + after))
    return zip(minutes[len(before) :], (epoch["test_error"] for epoch in after), strict=True)


def tutorial_curve(run):
    """Train the tutorial's M2, and return minutes and error at LOOKS even points of its minutes."""
    from experiments.bench.peer_pyro import tutorial_learner

    task = draw_task(load_data("mnist"), NUM_LABELED, run.split)
    update, classify = tutorial_learner(task)
    seconds, curve = 0.0, []
    for look in range(1, LOOKS + 1):
        start = time.process_time() - seconds
        while seconds < 60 * run.minutes * look / LOOKS:
            update()
            seconds = time.process_time() - start
        curve.append((seconds / 60, error_rate(classify, *task.data.part("test"))))
    return curve


def minutes_to(threshold, curve):
    """Return the CPU minutes after which the error is first at most `threshold`, infinity if it never is."""
    return min((minutes for minutes, error in curve if error <= threshold), default=math.inf)


def times_to_errors(results):
    """Return a line for each method, medians over its draws: the minutes to each of THRESHOLDS, and where it ends."""
    lines = []
    for name in dict.fromkeys(result["method"] for result in results):
        curves = [result["curve"] for result in results if result["method"] == name]
        times = (f"to {t} % {median(minutes_to(t, curve) for curve in curves):.1f}" for t in THRESHOLDS)
        end, error = (median(curve[-1][n] for curve in curves) for n in (0, 1))
        lines.append(f"{name}, {len(curves)} draws: {', '.join(times)} minutes; {error:.2f} % after {end:.1f}")
    return lines


def errors_over_time(results):
    """Show test error against CPU minutes: a line for each draw of labels."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    for method, (name, color) in SHOWN.items():
        for result in (result for result in results if result["method"] == method):
            label = name if result["split"] == 0 else None
            axis.plot(*zip(*result["curve"], strict=True), color=color, linewidth=1.2, label=label)
    for threshold in THRESHOLDS:
        axis.axhline(threshold, color="0.5", linewidth=0.8, linestyle=":")
    ticks = [2, *THRESHOLDS, 10, 20, 50, 90]
    axis.set(xlabel="CPU minutes of training, one thread", ylabel="test error (%)", yscale="log", xlim=(0, None))
    axis.set_yticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def answer():
    """Train what is not trained yet, print the medians, and write file and figure."""
    if not find_spec("pyro"):
        raise UserError("Pyro is not installed: pip install -e '.[bench]'")
    runs = sorted(RUNS, key=lambda run: run.split)  # they take turns
    if SMOKE:
        runs = [run.smoke() for run in runs if run.split == 0]
    jobs = [runner.Job(f"answer/{run.name}-{run.split}", run, run.compute) for run in runs]
    with runner.workers(1) as parallel:
        runner.run_jobs(jobs, parallel, runner.STATE, runner.STATE)
    results = [runner.finished_result(job, runner.STATE) for job in jobs]
    runner.write_result({"runs": results, "machine": runner.machine()}, runner.RESULTS / "answer.json")
    runner.write_figure(errors_over_time(results), runner.ROOT / "_images" / "error-vs-cpu-minutes.png")
    print(*times_to_errors(results), sep="\n")
