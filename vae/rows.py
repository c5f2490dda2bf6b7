"""Rows and labels as a user has them, made into what M2 takes; and folds that hold out labeled rows only.

What cannot be used raises ValueError, with what to do. scikit-learn comes with the extra `estimator`.
"""

import numpy as np
import torch
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from vae.data import NO_LABEL


def labeled_folds(y, n_splits=3, random_state=0):
    """Return pairs (training rows, held-out rows), arrays of indices: every labeled row that can be is held out once.

    For `cv=` of scikit-learn's `cross_val_score` and `GridSearchCV`, whose own splitters would hold out rows whose
    label nobody knows. Rows without a label, y (N,) as in `M2Classifier.fit`, always train, and of every class a row:
    the one label of a class is never held out. Raises ValueError if all classes have one.
    """
    if n_splits < 2:
        raise ValueError(f"n_splits = {n_splits} must be at least 2")
    classes, codes = encode_labels(y)
    order = check_random_state(random_state).permutation(len(codes))
    by_class = [order[codes[order] == k] for k in range(len(classes))]
    dealt = np.concatenate([rows for rows in by_class if len(rows) > 1] or [order[:0]])
    if not len(dealt):
        raise ValueError("every class has one label, so none can be held out: give some class two")
    folds = [np.sort(dealt[i::n_splits]) for i in range(n_splits)]  # a class's rows go to the folds in turn
    return [(np.setdiff1d(np.arange(len(codes)), fold), fold) for fold in folds if len(fold)]


def encode_labels(y):
    """Return the classes (K,), sorted, and the number of each row's class (N,), −1 where y is −1, None or NaN."""
    if isinstance(y, (list, tuple)):
        y = np.array(y, dtype=object)  # else −1 among text would become text
    y = column_or_1d(y.detach().cpu().numpy() if torch.is_tensor(y) else np.asarray(y), warn=True)
    known = np.array([not (v is None or type(v).__name__ == "NAType" or v != v or v == NO_LABEL) for v in y.tolist()])
    labels = y[known].tolist()
    if not labels:
        raise ValueError("y holds no label: give some rows of each class one")
    if len({isinstance(label, str) for label in labels}) == 2:
        raise ValueError("y mixes text and numbers: make all labels text, and −1 or None where there is none")
    if missing := {"", "-1", "None", "NaN", "NaT", "nan", "<NA>"} & set(labels):
        raise ValueError(f"y holds the text {missing.pop()!r}: where there is no label, it must be −1 or None itself")
    labels = np.array(labels)
    check_classification_targets(labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds one class only, {classes.tolist()[0]!r}: a classifier needs at least two; −1 means no label"
        )
    codes = np.full(len(y), NO_LABEL)
    codes[known] = numbers
    return classes, codes


def check_rows(estimator, X, reset):
    """Return X as float64: a table (N, D), or images (N, C, H, W), from (N, H, W) or (N, H, W, C) with C of 1, 3 or 4.

    With `reset`, `estimator` learns their shape, and otherwise demands it, as scikit-learn's `validate_data` does.
    """
    X = X.detach().cpu().numpy() if torch.is_tensor(X) else X
    X = np.stack(X) if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) > 1 else X
    if getattr(X, "ndim", 2) > 4:
        raise ValueError(f"X must be a table (N, D) or images of at most four dimensions, not {X.ndim}")
    if getattr(X, "ndim", 2) > 2:
        X = check_array(X, dtype=np.float64, allow_nd=True, ensure_all_finite=False, input_name="X")
        X = X[:, None] if X.ndim == 3 else X
        if X.shape[-1] in (1, 3, 4) and X.shape[1] not in (1, 3, 4):
            X = X.transpose(0, 3, 1, 2)
        if X.shape[1] not in (1, 3, 4):
            raise ValueError(f"X is {X.shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W), C of 1, 3 or 4")
        if reset:
            vars(estimator).pop("feature_names_in_", None)
            estimator.n_features_in_ = X[0].size
    else:
        try:
            X = validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
        except (ValueError, TypeError) as error:
            if "NAType" in str(error):
                raise ValueError("X holds NA: in a Pipeline, put SimpleImputer before it") from error
            if "be promoted" in str(error):
                raise ValueError("X holds dates beside numbers: make numbers of them, such as days") from error
            if "could not convert" not in str(error):
                raise
            raise ValueError(
                f"X holds text ({error}): in a Pipeline, put OneHotEncoder(sparse_output=False) before it"
            ) from error
    if np.isnan(X).any():
        raise ValueError("X holds NaN: in a Pipeline, put SimpleImputer before it")
    if np.isinf(X).any():
        raise ValueError("X holds infinity: replace it, or leave these rows out")
    estimator.x_shape_ = X.shape[1:] if reset else estimator.x_shape_
    if X.shape[1:] != estimator.x_shape_:
        raise ValueError(f"X has rows of shape {X.shape[1:]}, but those that it was fitted to {estimator.x_shape_}")
    return X


def choose_likelihood(X):
    """Return the likelihood that suits rows X: "Gaussian" for a table, and for images, or 0 and 1, a Bernoulli."""
    if np.isin(X, (0, 1)).all():
        return "Bernoulli"
    if X.ndim == 2:
        return "Gaussian"
    low, high = pixel_range(X)
    pixels = (X - low) / (high - low)
    nearly_binary = (pixels > 0.9).mean() > 0.02 and ((pixels < 0.1) | (pixels > 0.9)).mean() > 0.8
    return "Bernoulli" if nearly_binary else "gray Bernoulli"


def pixel_range(X):
    """Return what is black and what is white: 0 and 1, unless values of X lie beyond."""
    return min(0.0, X.min()), max(1.0, X.max())


def check_range(X, low, width):
    """Raise ValueError if X are on another scale than the pixels in [low, low + width] that a model was fitted to."""
    of_a_smaller_scale = width > 100 and 0 < X.max() <= width / 200  # 1 or −1…1 beside 255, 255 beside 65,535
    if not (X.max() > low + 2 * width or X.min() < low - width or of_a_smaller_scale):
        return
    found = f"in [{X.min():g}, {X.max():g}], but those that it was fitted to in [{low:g}, {low + width:g}]"
    if X.ndim == 2:
        raise ValueError(f"values lie {found}: fit to such rows, too, or with likelihood='Gaussian'")
    raise ValueError(f"pixels lie {found}: divide 8-bit images by 255, or multiply by it, as those were")


def column_scaling(X):
    """Return mean and standard deviation of each column, 1 for the latter where a column is constant: (D,), (D,)."""
    mean, spread = X.mean(0), X.std(0)
    return mean, np.where(spread > 1e-12 * np.abs(mean), spread, 1.0)
