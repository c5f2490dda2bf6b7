"""Will M2 help? Its guarded estimator beside what else there is, where few rows have a label.

A cell is a data set × labels a class × draw, of `experiments.own_data`. The estimator's settings for tables were chosen
on digits and make-classification, draws 0 to 2, 1000 and 1001, those for images on MNIST and Fashion-MNIST, draw 1000;
its rule after a look at draws 0 to 5, and once more at 6 to 15. Shown are 6 to 18. scikit-learn's methods have its
defaults, but for more iterations, and nearest neighbors in label spreading; they get tables with columns standardized
by the training rows, and pixels in [0, 1], those of digits too, as they are, flat. Of the three whose probabilities are
judged, the guarded M2 alone tempers its own.
"""

import hashlib
import time
import warnings
from functools import partial
from itertools import product
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier
from sklearn.svm import SVC

from experiments import SMOKE, UserError
from experiments.data import LOADERS, load_data
from experiments.own_data import CELLS, DATA, SPLITS, WHOLE, cell_of, draw, source
from experiments.runner import Job, load_result, missing_jobs, run_jobs, workers
from vae.data import NO_LABEL
from vae.estimator import LABELS, M2Classifier
from vae.evaluation import calibration_error
from vae.plotting import COLORS, WIDTH

SPREADING, TRAINING = "label spreading", "self-training"
UNGUARDED, GUARDED = "M2, unguarded", "M2Classifier"
SEMI_SUPERVISED = (SPREADING, TRAINING, UNGUARDED, GUARDED)


def scikit_learn(split):
    """Return scikit-learn's methods by name. Self-training is logistic regression's."""
    return {
        "logistic regression": LogisticRegression(max_iter=10_000),
        "SVC": SVC(),
        "random forest": RandomForestClassifier(random_state=split),
        SPREADING: LabelSpreading(kernel="knn", max_iter=100),
        TRAINING: SelfTrainingClassifier(LogisticRegression(max_iter=10_000)),
    }


METHODS = (LABELS, *scikit_learn(0), UNGUARDED, GUARDED)


def checksum(arrays):
    """Return the MD5 of arrays: a string."""
    digest = hashlib.md5()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def m2_classifiers(config):
    """Return ours by name: the guarded M2, the same without its guard, and its labels alone."""
    options = {"updates": config.updates, "random_state": config.split}
    return {
        LABELS: M2Classifier(cv=None, answers=LABELS, **options),
        UNGUARDED: M2Classifier(cv=None, **options),
        GUARDED: M2Classifier(**options),
    }


def flattened(x, x_test):
    """Return rows and test rows as scikit-learn's methods get them: (N, D)."""
    if x.min() >= 0 and x.max() <= 1:  # pixels
        return x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(x_test)


def measure(config, folder):
    """Return errors in %, CPU seconds and what the guard measured; of ours log losses and calibration errors, too."""
    x, x_test, y, y_test, few = draw(config)
    flat, flat_test = flattened(x, x_test)
    known, ours, errors, seconds = few != NO_LABEL, m2_classifiers(config), {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the guard's, for one: the result says the same
        for name, model in (ours | scikit_learn(config.split)).items():
            rows, test_rows = (x, x_test) if name in ours else (flat, flat_test)
            used = slice(None) if name in ours or name in SEMI_SUPERVISED else known
            start = time.process_time()
            model.fit(rows[used], few[used])
            seconds[name] = round(time.process_time() - start, 2)
            errors[name] = round(100 * float((model.predict(test_rows) != y_test).mean()), 3)
    probabilities = {name: model.predict_proba(x_test) for name, model in ours.items()}
    calibration = {name: calibration_error(*map(torch.from_numpy, (p, y_test))) for name, p in probabilities.items()}
    return {
        **{key: getattr(config, key) for key in ("data", "labels_per_class", "split")},
        "test_errors": {name: errors[name] for name in METHODS},
        "cpu_seconds": {name: seconds[name] for name in METHODS},
        "log_losses": {name: round(float(log_loss(y_test, p)), 4) for name, p in probabilities.items()},
        "calibration_errors": {name: round(error, 2) for name, error in calibration.items()},
        "chosen": ours[GUARDED].chosen_,
        "cv_results": ours[GUARDED].cv_results_,
        "likelihood": ours[GUARDED].likelihood_,
        "num_rows": len(x),
        "num_test_rows": len(x_test),
        "num_columns": flat.shape[1],
        "num_classes": len(np.unique(y)),
        "num_labeled": int(known.sum()),
        "cpu_minutes": round(sum(seconds.values()) / 60, 2),
        "data_checksum": checksum((x, x_test, y, y_test, few)),
    }, None


def job_of(config):
    """Return the job of a cell, in a smoke run a short one."""
    config = config.smoke() if SMOKE else config
    return Job(f"own/{config.data}-{config.labels_per_class}-{config.split}", config, partial(measure, config))


def run(names, splits, num_workers, scheduler, results, state):
    """Run the cells of these data sets and draws, or of all, that have no result yet.

    Raises UserError for a data set that there is not, or whose images are missing.
    """
    if unknown := [name for name in names or () if name not in DATA]:
        raise UserError(f"no data set is called {', '.join(unknown)}; there are {', '.join(DATA)}")
    cells = [cell for cell in CELLS if cell[0] in (names or DATA)]
    jobs = [job_of(cell_of(*cell, split)) for cell, split in product(cells, splits or SPLITS)]
    for name in {source(job.config.data) for job in missing_jobs(jobs, results)} & LOADERS.keys():
        load_data(name)
    with workers(num_workers, scheduler) as parallel:
        run_jobs(jobs, parallel, results, state)


def read_results(folder):
    """Return {(data set, labels a class): [result, …]} of a folder, draw by draw, in the order of `DATA`.

    UserError, with its path, for a file that is no result, and for a folder without any.
    """
    results = sorted(map(load_result, folder.glob("*.json")), key=lambda result: result["split"])
    results = [result for result in results if result["split"] in SPLITS]  # settings were chosen on others
    cells = {cell: [r for r in results if (r["data"], r["labels_per_class"]) == cell] for cell in CELLS}
    if not any(cells.values()):
        raise UserError(f"no result is in {folder}: run python -m experiments own")
    return {cell: found for cell, found in cells.items() if found}


def mean_errors(cells, method):
    """Return the mean test error in % of a method in each cell."""
    return [mean(result["test_errors"][method] for result in results) for results in cells.values()]


def against_labels_alone(cells):
    """Show M2's error against that of the labels alone, guarded and not, a point a data set and number of labels."""
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    colors = dict(zip([name for name in DATA if name not in WHOLE], COLORS, strict=True))
    for name in dict.fromkeys(name for name, _ in cells):
        of_data = {cell: results for cell, results in cells.items() if cell[0] == name}
        color, shape = colors[source(name)], "s" if name in WHOLE else "o"
        x, unguarded, guarded = (mean_errors(of_data, method) for method in (LABELS, UNGUARDED, GUARDED))
        axis.vlines(x, unguarded, guarded, color=color, linewidth=0.8, alpha=0.5)
        axis.plot(x, unguarded, shape, color=color, markerfacecolor="none", markersize=4.5, clip_on=False)
        axis.plot(x, guarded, shape, color=color, markersize=8, label=name, clip_on=False)
    axis.plot([], [], "o", color="0.4", markerfacecolor="none", markersize=4.5, label=UNGUARDED)
    axis.axline((0, 0), (1, 1), color="0.5", linewidth=1, zorder=0)
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90) if tick <= max(*axis.get_xlim(), 10)]
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("function", functions=(np.sqrt, np.square))  # more room for small errors, and some for none
    limits = (0, max(axis.get_xlim()[1], axis.get_ylim()[1], 10))
    axis.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks, aspect="equal")
    axis.set(xlabel=f"test error of {LABELS} (%)", ylabel="test error of M2, guarded or not (%)")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(alpha=0.3)
    return figure
