"""Test error against CPU minutes of training, ours beside peers: `python -m experiments bench --answer`.

MNIST with 100 labels, the same draws of them for all, in one thread. M1's training counts, evaluation does not. Ours
train to the end of their stages, also on fewer images with as many updates; a peer for so many minutes. What is
trained stays in checkpoints/: a killed command goes on, but for a peer's run, which starts anew. Writes
results/answer.json and _images/error-vs-cpu-minutes.png; a smoke run writes to preview/smoke.
"""

import importlib
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import accumulate

import torch

from experiments import runner
from experiments.bench.report import errors_over_time, times_to_errors
from experiments.bench.run import machine
from experiments.methods import M2, METHODS, PLAIN
from experiments.ssl import draw_task
from vae.evaluation import error_rate
from vae.recipes import M1Recipe

LABELS, THRESHOLDS = 100, (5, 3.33)  # test errors in %; the second is M1+M2's in the paper
LOOKS = 60  # at a peer's error, evenly spread over its minutes
_M2 = METHODS["m2"]
QUICK = replace(  # a short M1, smaller networks, half of the labels in a batch
    _M2,
    hidden_dims=(300, 300),
    activation="SiLU",
    m1=replace(_M2.m1, hidden_dims=(300, 300), activation="SiLU", recipe=M1Recipe(epochs=10)),
    labeled_batch_size=50,
    recipe=replace(_M2.recipe, frozen_epochs=2, unfrozen_epochs=10),
)
LONGER = runner.with_recipe(QUICK, unfrozen_epochs=36)


@dataclass(frozen=True)
class Run:
    """What is trained on draw `split` of labels: `method` in its stages, or for `minutes` the peer of that name.

    With `num_images`, on so many of the training images, the same for all draws.
    """

    name: str
    split: int
    method: M2 | None = None
    minutes: float | None = None
    num_images: int | None = None

    def data(self):
        """Return MNIST, with as many training images."""
        every = runner.load_data("mnist")
        if self.num_images is None:
            return every
        kept = torch.randperm(len(every.train_images), generator=torch.Generator().manual_seed(0))[: self.num_images]
        return replace(every, train_images=every.train_images[kept], train_labels=every.train_labels[kept])

    def compute(self, folder):
        """Return the result, with [CPU minutes, test error] at each look, and no model."""
        curve = peer_curve(self) if self.minutes else staged_curve(self, folder)
        curve = [[round(minutes, 5), round(error, 2)] for minutes, error in curve]
        return {"method": self.name, "split": self.split, "cpu_minutes": curve[-1][0], "curve": curve}, None


def _for_images(n):
    """Return the quick M2 with so many more epochs that it takes about as many steps on `n` images."""
    m1, m2, times = QUICK.m1.recipe, QUICK.recipe, 50_000 // n
    m2 = replace(
        m2,
        label_epochs=m2.label_epochs * times,
        frozen_epochs=m2.frozen_epochs * times,
        unfrozen_epochs=m2.unfrozen_epochs * times,
    )
    return replace(QUICK, m1=replace(QUICK.m1, recipe=replace(m1, epochs=m1.epochs * times)), recipe=m2)


RUNS = [
    *(Run("quick", split, QUICK) for split in range(5)),
    *(Run("longer", split, LONGER) for split in range(5)),
    *(Run(f"quick{n}", s, _for_images(n), num_images=n) for n in (1_000, 5_000, 25_000) for s in range(2)),
    *(Run("plain", split, PLAIN, minutes=4) for split in range(2)),
    *(Run("pyro", split, minutes=4) for split in range(2)),
]


def staged_curve(run, folder):
    """Train M1, once for all draws, then M2; return M1's minutes plus those of M2, and the error, after each epoch."""
    data, m1_config = run.data(), run.method.m1
    torch.manual_seed(m1_config.seed)
    where = runner.STATE / "answer/m1" / f"{runner.digest(m1_config)}-{len(data.train_images)}"
    m1, before = m1_config.train(data.train_images, where)
    task, test = draw_task(data, LABELS, run.split, m1, folder), data.part("test")
    _, after, _ = run.method.train(task, lambda m2: {"test_error": error_rate(m2.classify, *test)})
    minutes = list(accumulate(epoch["cpu_seconds"] / 60 for epoch in before + after))
    return zip(minutes[len(before) :], (epoch["test_error"] for epoch in after), strict=True)


def peer_curve(run):
    """Train a peer, and return minutes and error at LOOKS even points of its minutes."""
    task = draw_task(run.data(), LABELS, run.split)
    peer = importlib.import_module(f"experiments.bench.peer_{run.name}")
    update, classify = peer.build_learner(task, run.method)
    seconds, curve = 0.0, []
    for look in range(1, LOOKS + 1):
        start = time.process_time() - seconds
        while seconds < 60 * run.minutes * look / LOOKS:
            update()
            seconds = time.process_time() - start
        curve.append((seconds / 60, error_rate(classify, *task.data.part("test"))))
    return curve


def answer():
    """Train what is not trained yet, print the medians, and write file and figure."""
    runs = RUNS
    if not find_spec("pyro"):
        print("LEFT OUT: Pyro is not installed; pip install -e '.[bench]'")
        runs = [run for run in runs if run.name != "pyro"]
    if runner.SMOKE:
        smoked = (replace(run, method=run.method and run.method.smoke()) for run in runs if run.split == 0)
        runs = [replace(run, minutes=run.minutes and 1e-3) for run in smoked]
    jobs = [runner.Job(f"answer/{run.name}-{run.split}", run, run.compute) for run in runs]
    jobs.sort(key=lambda job: job.config.split)  # they take turns
    with runner.workers(1) as parallel:
        runner.run_jobs(jobs, parallel, runner.STATE, runner.STATE)
    results = [runner.finished_result(job, runner.STATE) for job in jobs]
    runner.write_result({"runs": results, "machine": machine()}, runner.RESULTS / "answer.json")
    runner.write_figure(errors_over_time(results, THRESHOLDS), runner.ROOT / "_images" / "error-vs-cpu-minutes.png")
    print(*times_to_errors(results, THRESHOLDS), sep="\n")
