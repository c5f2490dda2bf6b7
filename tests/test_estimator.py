"""M2 as a scikit-learn classifier: what it takes and refuses, when it steps aside, what stays the same."""

import doctest
import pickle
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6")

from joblib import Parallel, delayed, parallel_config
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

import vae
from experiments import methods
from vae import estimator, recipes
from vae.data import SemiSupervisedBatches, add_noise
from vae.estimator import M2Classifier
from vae.models import SemiSupervisedVAE
from vae.recipes import M2Recipe, build_m2, train_m2
from vae.rows import labeled_folds

NAMES = np.array(["ant", "bee", "cat"])
ASIDE = "ignore:labels alone answer"


def clusters(seed=0, num=240, num_labels=18):
    """Return a table (num, 6) whose three clusters are the classes, all labels, and the few that are known."""
    rows, y = np.random.RandomState(seed).standard_normal((num, 6)), np.arange(num) % 3
    rows[np.arange(num), y] += 2.8
    return rows, y, np.where(np.arange(num) < num_labels, y, -1)


def cut_across(seed, num=240, num_labels=40):
    """Return the same of two classes, which a plane parts, and of two clusters, which have nothing to do with them."""
    rows, cluster = np.random.RandomState(seed).standard_normal((num, 18)), np.arange(num) % 2
    y = (rows[:, :6].sum(1) > 0).astype(int)
    rows[:, 6:] = 0.5 * rows[:, 6:] + 2 * (2 * cluster[:, None] - 1)
    return rows, y, np.where(np.arange(num) < num_labels, y, -1)


def small(**options):
    """Return a classifier that hardly learns anything, at once."""
    return M2Classifier(**({"updates": 20, "hidden_dims": (8,), "cv": None, "random_state": 0} | options))


def pictures(num=60, height=5, width=6, seed=0):
    """Return gray images (N, H, W), of which the first 30 are brighter, and labels that say so for every second."""
    images = np.random.RandomState(seed).uniform(0, 0.6, (num, height, width))
    images[:30] += 0.4
    images[0, 0, 0], images[-1, -1, -1] = 1, 0
    return images, np.where(np.arange(num) % 2 == 0, np.arange(num) < 30, -1)


X, Y, FEW = clusters(num=60, num_labels=12)


def probabilities(rows, y=FEW, **options):
    return small(**options).fit(rows, y).predict_proba(rows)


@pytest.fixture(scope="module")
def fitted():
    return small(updates=100).fit(X, FEW)


def random_states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), name, keys.tolist(), rest


# scikit-learn's contract

ONE_CLASS = {"check_classifiers_classes": "y of −1 and 1 means: −1 has no label"}


@pytest.mark.filterwarnings("ignore")
def test_it_keeps_scikit_learns_contract():
    model = M2Classifier(updates=60, hidden_dims=(32,), cv=None, random_state=0)
    results = estimator_checks.check_estimator(model, expected_failed_checks=ONE_CLASS, on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == ONE_CLASS.keys()


# rows


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f8"])
def test_the_precision_of_rows_is_no_matter(dtype):
    rows = X.astype(dtype)
    assert np.array_equal(probabilities(rows), probabilities(rows.astype(np.float64)))


def test_a_dataframe_a_tensor_a_list_and_any_layout_in_memory_predict_what_an_array_does():
    pandas, expected, read_only = pytest.importorskip("pandas"), probabilities(X), X.copy()
    read_only.setflags(write=False)
    frame = pandas.DataFrame(X, index=[f"row {i}" for i in range(len(X))], columns=list("abcdef"))
    for rows in (
        frame,
        torch.from_numpy(X).requires_grad_(),
        X.tolist(),
        read_only,
        np.asfortranarray(X),
        X[::-1, ::-1].copy()[::-1, ::-1],
    ):
        np.testing.assert_allclose(probabilities(rows), expected, rtol=1e-10)
    booleans = pandas.DataFrame(X > 1)
    assert np.array_equal(probabilities(booleans), probabilities((X > 1).astype(float)))


def test_a_dataframe_is_fitted_without_a_warning():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small().fit(frame, FEW).feature_names_in_.tolist() == list("abcdef")


def test_gray_images_have_a_channel_anywhere_or_none_and_may_come_as_a_list():
    images, y = pictures()
    expected = probabilities(images, y)
    for same in (images[:, None], images[..., None], [*images]):
        assert np.array_equal(probabilities(same, y), expected)
    assert np.array_equal(small().fit(images, y).predict_proba(images[..., None]), expected)


def test_colours_come_first_or_last():
    (images, y), shades = pictures(), np.array([1, 0.7, 0.2])
    first, last = images[:, None] * shades[:, None, None], images[..., None] * shades
    assert np.array_equal(probabilities(last, y), probabilities(first, y))
    assert small().fit(last, y).sample(2).shape == (2, 3, 5, 6)


def test_eight_bit_images_are_what_they_are_as_floats_in_their_range_or_in_0_to_1():
    images, y = pictures()
    images = (255 * images).round().astype(np.uint8)
    expected = probabilities(images, y)
    assert np.array_equal(probabilities(images.astype(float), y), expected)
    np.testing.assert_allclose(probabilities(images / 255, y), expected, rtol=1e-4)
    assert small().fit(images, y).sample(50).max() > 1  # in their units


BYTES = (255 * pictures()[0]).astype(np.uint8)


@pytest.mark.parametrize(
    ("learned", "new"),
    [
        (BYTES / 255, BYTES),
        (BYTES, BYTES / 255),
        (BYTES, BYTES / 127.5 - 1),
        (257 * BYTES.astype(np.uint16), BYTES),
        (255 * (BYTES > 127), BYTES > 127),
    ],
)
def test_images_on_another_scale_than_those_that_were_learned_are_refused(learned, new):
    model = small().fit(learned, pictures()[1])
    with pytest.raises(ValueError, match="255"):
        model.predict(new)
    assert len(model.predict(np.zeros_like(learned))) == 60  # which is black on every scale


def test_gray_images_are_sampled_in_gray():
    images, y = pictures()
    model = small().fit(images, y)
    samples = model.sample(20)
    assert samples.min() > 0 and samples.max() < 1  # a draw is black or white
    assert np.array_equal(samples, model.sample(20, mean=True))
    assert set(np.unique(small().fit(images > 0.4, y).sample(20))) == {0, 1}


def test_large_images_are_convolved():
    images, y = pictures(num=60, height=36, width=40)
    model = small().fit(images, y)
    assert isinstance(model.m2_.encoder.network, vae.conv.ConvNet)
    assert model.sample(2, mean=True).shape == (2, 1, 36, 40)
    assert model.predict(images[:1]).shape == (1,)


@pytest.mark.parametrize(
    ("rows", "likelihood"),
    [
        (X > 1.5, "Bernoulli"),
        (np.eye(60), "Bernoulli"),  # one column for each of many categories
        (255 * (X > 1.5), "Gaussian"),
        (np.c_[np.linspace(0, 1, 60), np.eye(10)[np.arange(60) % 10]], "Gaussian"),  # one is no yes or no
        (np.c_[X > 1.5, 2015 + np.arange(60) % 9], "Gaussian"),  # a year
        (X, "Gaussian"),
        (pictures()[0], "gray Bernoulli"),
        (pictures()[0] > 0.4, "Bernoulli"),
    ],
)
def test_the_likelihood_suits_the_rows(rows, likelihood):
    assert small().fit(rows, FEW).likelihood_ == likelihood


@pytest.mark.parametrize("likelihood", estimator.LIKELIHOODS)
def test_the_likelihood_is_the_named_one(likelihood):
    model = small(likelihood=likelihood).fit(X, FEW)
    assert model.likelihood_ == likelihood
    assert type(model.m2_.decoder) is estimator.LIKELIHOODS[likelihood][0]


def test_a_column_of_one_value_or_none_of_its_scale_does_no_harm():
    model = small().fit(np.hstack([X, np.full((60, 1), 7.0), np.zeros((60, 1))]), FEW)
    assert np.isfinite(model.score_samples(np.hstack([X, np.full((60, 1), 7.0), np.zeros((60, 1))]))).all()
    rows, _, few = clusters()
    wide = rows * [1, 1e6, 1, 1e-6, 1, 1] + [0, 0, 1e4, 0, 0, 0]
    of_either = [small(updates=100, likelihood="Gaussian").fit(x, few).predict(x) for x in (rows, wide)]
    assert (of_either[0] == of_either[1]).mean() > 0.95


@pytest.mark.parametrize("shift", [1.7e9, 2_451_545])
def test_a_column_of_times_is_scaled_too(shift):
    """Seconds since 1970 and Julian days vary by less than a millionth of what they are."""
    rows = X.copy()
    rows[:, 0] = shift + X[:, 0] / 64
    model = small().fit(rows, FEW)
    assert model.scale_[0] == pytest.approx(X[:, 0].std() / 64, rel=1e-3)


# labels

KNOWN = FEW >= 0


def some(values, missing, dtype=object):
    """Return `values` where the label is known, and `missing`, cycled, where it is not."""
    y = np.empty(60, object)
    y[KNOWN], y[~KNOWN] = np.asarray(values)[Y[KNOWN]], [missing[i % len(missing)] for i in range(int((~KNOWN).sum()))]
    return y.astype(dtype)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (some([7, 30, 2000], [-1], int), [7, 30, 2000]),
        (some([0.0, 1.0, 2.0], [np.nan, -1], float), [0, 1, 2]),
        (some([5, 6, 7], [-1, None, np.nan]), [5, 6, 7]),
        (some(NAMES, [-1, None, np.nan]), ["ant", "bee", "cat"]),
        (some([False, True, True], [None]), [False, True]),
        (some(["b", "b", "a"], [None]), ["a", "b"]),
        (some(NAMES, [None]).tolist(), ["ant", "bee", "cat"]),
        (torch.from_numpy(FEW), [0, 1, 2]),
        (torch.from_numpy(FEW).float(), [0, 1, 2]),
        (FEW.tolist(), [0, 1, 2]),
        *((some(NAMES, [missing]).tolist(), ["ant", "bee", "cat"]) for missing in (-1, np.nan)),
    ],
)
def test_a_missing_label_is_minus_one_none_or_nan_in_any_kind_of_labels(y, classes):
    model = small().fit(X, y)
    assert model.classes_.tolist() == classes
    assert set(model.predict(X)) <= set(classes)
    assert model.transduction_[KNOWN].tolist() == np.asarray(y, dtype=object)[KNOWN].tolist()


def test_labels_in_pandas_may_be_missing_in_all_its_ways():
    pandas = pytest.importorskip("pandas")
    numbers = pandas.Series(FEW, index=range(100, 160), dtype="Int64").replace(-1, pandas.NA)
    for y in (numbers, pandas.Series(FEW), pandas.Series(np.where(KNOWN, FEW, np.nan)), numbers.astype("category")):
        assert np.array_equal(probabilities(X, y), probabilities(X))
    words = some(NAMES, [None])
    for y in (pandas.Series(words), pandas.Series(words, dtype="string"), pandas.Categorical(words)):
        assert small().fit(X, y).classes_.tolist() == NAMES.tolist()
        assert np.array_equal(probabilities(X, y), probabilities(X))


def test_the_order_of_classes_is_theirs_not_that_of_the_rows():
    names = np.array(["z", "m", "a"])
    model = small(label_prior=[0.1, 0.2, 0.7]).fit(X, some(names, [None]))
    assert model.classes_.tolist() == ["a", "m", "z"]
    np.testing.assert_allclose(model.m2_.label_prior.probs, [0.1, 0.2, 0.7], rtol=1e-6)


def test_a_label_prior_in_pandas_goes_by_its_index(tmp_path):
    pandas = pytest.importorskip("pandas")
    shares, y = pandas.Series([0.7, 0.1, 0.2], ["cat", "ant", "bee"]), some(NAMES, [None])
    model = small(label_prior=shares).fit(X, y)
    assert np.array_equal(model.predict_proba(X), probabilities(X, y, label_prior=[0.1, 0.2, 0.7]))
    model.save(tmp_path / "classifier")
    assert M2Classifier.load(tmp_path / "classifier").label_prior == [0.1, 0.2, 0.7]


@pytest.mark.filterwarnings(ASIDE)
def test_a_class_with_one_label_takes_part():
    y = np.where((FEW == 2) & (np.arange(60) > 2), -1, FEW)
    model = small(cv=3).fit(X, y)
    assert model.predict_proba(X).shape == (60, 3)
    assert model.report_.startswith("8 labeled rows, each held out once")  # of twelve; three went, and one stays


def test_labels_alone_answer_where_every_class_has_one():
    with pytest.warns(UserWarning, match="every class has one label, so none can be held out"):
        model = small(cv=3).fit(X, np.where(np.arange(60) < 3, Y, -1))
    assert model.chosen_ == "labels alone" and model.cv_results_ == {}


NAN, INFINITE = X.copy(), X.copy()
NAN[3, 1], INFINITE[3, 1] = np.nan, -np.inf


@pytest.mark.parametrize(
    ("rows", "y", "complaint"),
    [
        (X, np.full(60, -1), "y holds no label: give some rows of each class one"),
        (X, [None] * 60, "y holds no label"),
        (X, np.where(KNOWN, 1, -1), "y holds one class only, .*1.*: a classifier needs at least two"),
        (X, some(NAMES, ["-1"], str), "y holds the text '-1': where there is no label"),
        (X, some(NAMES, [None], str), "y holds the text 'None'"),
        (X, some(NAMES, [""], str), "y holds the text ''"),
        (X, some(np.array([0, "b", "c"], object), [None]), "y mixes text and numbers"),
        (X, some(NAMES, [np.nan], str), "y holds the text 'nan'"),
        (X, None, "requires y to be passed"),
        (X, np.eye(3)[Y], "y should be a 1d array"),
        (NAN, FEW, "X holds NaN: .*SimpleImputer"),
        (INFINITE, FEW, "X holds infinity: replace it"),
        (np.where(X > 0, "a", "b").astype(object), FEW, "X holds text .*OneHotEncoder"),
        (np.zeros((60, 12, 14, 6)), FEW, r"X is \(60, 12, 14, 6\): images are .* C of 1, 3 or 4"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_what_to_do(rows, y, complaint):
    with pytest.raises(ValueError, match=complaint):
        small().fit(rows, y)


def test_missing_values_and_dates_of_pandas_are_refused_with_what_to_do():
    pandas = pytest.importorskip("pandas")
    dates = pandas.DataFrame(X).assign(since=pandas.Timestamp("2020-02-29")).rename(columns=str)
    missing = pandas.DataFrame(X).astype(object)
    missing.iloc[3, 1] = pandas.NA
    for frame, complaint in ((missing, "X holds NA: .*SimpleImputer"), (dates, "make numbers of them, such as days")):
        with pytest.raises(ValueError, match=complaint):
            small().fit(frame, FEW)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cv": 1}, "cv = 1 must be a whole number of at least 2"),
        (
            {"likelihood": "Poisson"},
            "'Poisson' must be one of auto, Bernoulli, gray Bernoulli, continuous Bernoulli, Gaussian",
        ),
        ({"updates": 0}, "updates = 0 must be a whole number of at least 1"),
        ({"z_dim": 2.5}, "z_dim = 2.5 must be"),
        ({"answers": "M3"}, "answers = 'M3' must be one of 'labels alone', 'M2'"),
        ({"label_prior": [0.5, 0.5]}, "label_prior must hold 3 probabilities above 0"),
        ({"hidden_dims": ()}, r"hidden_dims = \(\) must hold widths of at least 1"),
        ({"hidden_dims": (8, 2.5)}, "hidden_dims = .* must hold widths"),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_is_trained(options, complaint, monkeypatch):
    monkeypatch.setattr(recipes, "fit", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=complaint):
        small(**{"cv": 2} | options).fit(X, FEW)


@pytest.mark.parametrize("hidden_dims", [8, [8], np.array([8])])
def test_widths_are_a_number_a_list_or_an_array(hidden_dims):
    assert np.array_equal(probabilities(X, hidden_dims=hidden_dims), probabilities(X))


def test_a_fit_that_fails_leaves_no_model_of_an_earlier_one():
    model = small().fit(X, FEW)
    with pytest.raises(ValueError, match="updates = 0"):
        model.set_params(updates=0).fit(100 * X, FEW)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    assert not {"m2_", "report_", "transduction_", "history_"} & vars(model).keys()


def test_new_rows_and_classes_must_be_those_that_it_was_fitted_to(fitted):
    with pytest.raises(ValueError, match="X has 5 features, but M2Classifier is expecting 6"):
        fitted.predict(X[:, :5])
    with pytest.raises(ValueError, match=r"rows of shape \(1, 6, 1\), but those that it was fitted to \(6,\)"):
        fitted.score_samples(X[:, :, None])
    with pytest.raises(ValueError, match="SimpleImputer"):
        fitted.predict(NAN)
    with pytest.raises(ValueError, match=r"label = 3 must be one of \[0, 1, 2\]"):
        fitted.sample(2, label=3)
    with pytest.raises(ValueError, match=r"label = \[0, 1\] must be one of"):
        fitted.sample(2, label=[0, 1])
    images, y = pictures()
    with pytest.raises(ValueError, match=r"\(1, 4, 6\), but those that it was fitted to \(1, 5, 6\)"):
        small().fit(images, y).predict(images[:, :4])


def test_a_file_of_a_model_or_of_nothing_is_no_classifier(fitted, tmp_path):
    fitted.m2_.save(tmp_path / "model")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match=r"model holds no M2Classifier; vae\.load reads models"):
        M2Classifier.load(tmp_path / "model")
    with pytest.raises(ValueError, match="text is not a readable model"):
        M2Classifier.load(tmp_path / "text")


# the guard


@pytest.mark.parametrize("seed", range(2))
def test_where_clusters_are_the_classes_m2_answers_and_is_better_than_labels_alone(seed):
    rows, y, few = clusters(seed)
    model = M2Classifier(updates=200, hidden_dims=(64,), z_dim=3, cv=2, random_state=seed).fit(rows, few)
    assert model.chosen_ == "M2"
    assert model.cv_results_["M2"]["error"] < model.cv_results_["labels alone"]["error"]
    assert [line for line in model.report_.splitlines() if line.endswith("answers")] == [
        line for line in model.report_.splitlines() if line.startswith("M2 ")
    ]
    hidden = few < 0
    by_labels = of_labels_alone(rows, few, seed)
    assert (model.predict(rows) == y)[hidden].mean() > (by_labels == y)[hidden].mean() + 0.03


def of_labels_alone(rows, y, seed):
    """Return the predictions of a classifier that sees the labels of a table for the tenth of 200 updates."""
    x, y = torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float(), torch.from_numpy(y)
    m2, batches = by_hand(x, y, seed, hidden_dims=(64,), z_dim=3, num_batches=10)
    train_m2(m2, batches, M2Recipe(label_epochs=2, frozen_epochs=0, unfrozen_epochs=0), verbose=False)
    return m2.classify(x).numpy()


@pytest.mark.parametrize("seed", range(2))
def test_where_clusters_cut_across_the_classes_it_steps_aside_and_says_by_how_much_m2_is_worse(seed):
    rows, _, few = cut_across(seed)
    options = {"updates": 200, "hidden_dims": (64,), "z_dim": 3, "random_state": seed}
    model = M2Classifier(cv=2, **options)
    with pytest.warns(UserWarning, match=r"M2 would have raised the error on held-out labels by \d+\.\d points"):
        model.fit(rows, few)
    assert model.chosen_ == "labels alone"
    by_labels = of_labels_alone(rows, few, seed)
    assert np.array_equal(model.predict(rows), by_labels)
    assert np.isfinite(model.score_samples(rows)).all()  # of encoder and decoder, which learn all the same
    unguarded = M2Classifier(cv=None, answers="labels alone", **options).fit(rows, few)
    assert np.array_equal(unguarded.predict(rows), by_labels)
    assert unguarded.chosen_ == "labels alone" and unguarded.cv_results_ == {} and unguarded.temperature_ == 1
    wrong = 0
    for _, held_out in labeled_folds(few, 2, int(np.random.RandomState(seed).randint(2**31 - 1))):
        hidden = few.copy()
        hidden[held_out] = -1
        wrong += (of_labels_alone(rows, hidden, seed)[held_out] != few[held_out]).sum()
    assert model.cv_results_["labels alone"]["error"] == pytest.approx(100 * wrong / 40)


def measured(error, log_loss, temperature):
    return {"error": error, "log_loss": log_loss, "calibration_error": 0.0, "temperature": temperature}


@pytest.mark.parametrize(
    ("wrong", "log_loss", "chosen"),
    [
        (2, 0.4, "M2"),
        (2, 0.5, "labels alone"),  # which have to be beaten in both
        (2, 0.6, "labels alone"),
        (3, 0.4, "labels alone"),  # one error fewer is within its standard error
        (4, 0.4, "labels alone"),
        (5, 0.4, "labels alone"),
    ],
)
def test_m2_has_to_beat_labels_alone_by_two_errors_and_in_log_loss(wrong, log_loss, chosen, monkeypatch):
    """Of the twelve labels of `FEW`, labels alone get four wrong."""
    m2 = measured(100 * wrong / 12, log_loss, temperature=3.0)
    found = {"labels alone": measured(100 * 4 / 12, 0.5, temperature=2.0), "M2": m2}
    each = iter(found.values())
    monkeypatch.setattr(estimator, "_measured", lambda logits, y: next(each))
    with warnings.catch_warnings(record=True) as told:
        model = small(cv=2).fit(X, FEW)
    assert model.chosen_ == chosen and model.cv_results_ == found
    assert model.temperature_ == found[chosen]["temperature"]
    assert len(told) == (wrong > 4)


@pytest.mark.parametrize("kind", ["table", "images"])
@pytest.mark.parametrize("wins", ["labels alone", "M2"])
def test_m2_of_images_starts_from_one_m1_and_labels_alone_and_tables_from_none(kind, wins, monkeypatch):
    """Two folds of labels alone, two of M2, and the one that answers."""
    starts, build = [], recipes.build_m2
    each = iter([measured(10, 0.5, 1), measured(0 if wins == "M2" else 10, 0.4, 1)])

    def noted(*sizes, m1, **options):
        starts.append(m1)
        return build(*sizes, m1=m1, **options)

    monkeypatch.setattr(estimator, "_measured", lambda logits, y: next(each))
    monkeypatch.setattr(estimator, "build_m2", noted)
    rows, y = (X, FEW) if kind == "table" else pictures()
    small(cv=2).fit(rows, y)
    of_images = [False, False, True, True, wins == "M2"]
    assert [m1 is not None for m1 in starts] == (of_images if kind == "images" else [False] * 5)
    assert len({id(m1) for m1 in starts if m1}) == (kind == "images")


def test_what_is_measured_is_tempered_as_suits_it_best():
    """Three of four right: the logits 4 and 0 should be ln 3 apart."""
    found = estimator._measured(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    assert found["error"] == 25
    assert found["temperature"] == pytest.approx(4 / np.log(3), rel=0.06)
    assert found["log_loss"] == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4, abs=1e-3)
    assert found["calibration_error"] < 1.5
    assert estimator._measured(torch.tensor([[4.0, 0.0]] * 4), torch.zeros(4).long())["temperature"] == 1


def test_probabilities_are_tempered(fitted):
    before, model = fitted.predict_proba(X), pickle.loads(pickle.dumps(fitted))
    model.temperature_ = 2.0
    np.testing.assert_allclose(model.predict_proba(X), before**0.5 / (before**0.5).sum(1, keepdims=True), rtol=1e-9)


# folds


@pytest.mark.parametrize("n_splits", [2, 3, 5, 50])
def test_folds_hold_out_labeled_rows_once_each_and_leave_a_row_of_every_class(n_splits):
    y = some(NAMES, [-1, None, np.nan])
    y[np.flatnonzero(KNOWN & (Y == 2))[1:]] = None  # one cat
    folds = labeled_folds(y, n_splits)
    held_out = np.concatenate([test for _, test in folds])
    assert sorted(held_out) == np.flatnonzero(KNOWN & (Y < 2)).tolist()
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(60)) and len(test)
        assert set(NAMES) <= set(y[train])


def test_folds_are_drawn_from_the_random_state_and_need_two_labels_of_a_class():
    drawn = [[test.tolist() for _, test in labeled_folds(FEW, random_state=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match=r"every class has one label, so none can be held out: give some class two"):
        labeled_folds(np.where(np.arange(60) < 3, Y, -1))
    with pytest.raises(ValueError, match="n_splits = 1"):
        labeled_folds(FEW, 1)


@pytest.mark.parametrize("y", [FEW, some(NAMES, [None])])
def test_folds_are_for_scikit_learns_searches_in_a_pipeline(y):
    model, folds = make_pipeline(StandardScaler(), small(updates=40)), labeled_folds(y, 2)
    scores = cross_val_score(model, X, y, cv=folds, error_score="raise")
    assert scores.tolist() == [
        (clone(model).fit(X[train], y[train]).predict(X[test]) == y[test]).mean() for train, test in folds
    ]
    search = GridSearchCV(model, {"m2classifier__z_dim": [1, 2]}, cv=folds, error_score="raise").fit(X, y)
    assert set(search.predict(X)) <= set(y[KNOWN])


# what stays the same


def test_probabilities_sum_to_one_and_the_largest_is_the_prediction(fitted):
    probs = fitted.predict_proba(X)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-12)
    assert np.array_equal(fitted.predict(X), fitted.classes_[probs.argmax(1)])
    assert np.array_equal(fitted.transduction_, np.where(KNOWN, FEW, fitted.predict(X)))
    assert fitted.transform(X).shape == (60, 3)


@pytest.mark.filterwarnings(ASIDE)
@pytest.mark.parametrize("cv", [None, 3])
def test_the_random_state_decides_everything_and_no_other_is_touched(cv):
    before = random_states()
    same, again, other = (small(cv=cv, random_state=seed).fit(X, FEW) for seed in (1, 1, 2))
    for model in (same, again, other):
        model.predict(X), model.transform(X), model.score_samples(X), model.sample(3)
    assert random_states() == before
    torch.manual_seed(9), np.random.seed(9)
    later = small(cv=cv, random_state=1).fit(X, FEW)
    for model, equal in ((again, True), (later, True), (other, False)):
        assert np.array_equal(model.predict_proba(X), same.predict_proba(X)) is equal
        assert np.array_equal(model.sample(3), same.sample(3)) is equal
        assert (model.cv_results_ == same.cv_results_) is (equal or cv is None)


def test_a_generator_as_random_state_goes_on(fitted):
    model = small(random_state=np.random.RandomState(0)).fit(X, FEW)
    assert not np.array_equal(model.sample(3), model.sample(3))
    assert np.array_equal(fitted.sample(3), fitted.sample(3))


@pytest.mark.filterwarnings(ASIDE)
def test_it_prints_only_if_it_is_told_to(capsys):
    small(cv=2).fit(X, FEW)
    assert capsys.readouterr() == ("", "")
    small(verbose=True).fit(X, FEW)
    assert "unfrozen" in capsys.readouterr().out


@pytest.mark.filterwarnings(ASIDE)
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_two_fits_at_once_are_what_each_is_alone(backend):
    with parallel_config(backend):
        both = Parallel(2)(delayed(probabilities)(X, FEW, random_state=seed) for seed in range(2))
    for seed in range(2):
        assert np.array_equal(both[seed], probabilities(X, FEW, random_state=seed))


@pytest.mark.filterwarnings(ASIDE)
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_two_at_once_measure_what_one_does(backend):
    alone = small(cv=3).fit(X, FEW)
    with parallel_config(backend=backend):
        both = small(cv=3, n_jobs=2).fit(X, FEW)
    assert both.cv_results_ == alone.cv_results_
    assert np.array_equal(both.predict_proba(X), alone.predict_proba(X))


@pytest.mark.parametrize("how", ["pickle", "clone", "file"])
@pytest.mark.parametrize("kind", ["table", "images"])
def test_a_copy_says_what_the_original_does(how, kind, tmp_path):
    rows, y = (X, some(NAMES, [None])) if kind == "table" else pictures()
    model = small(label_prior=[0.2, 0.3, 0.5] if kind == "table" else None).fit(rows, y)
    if how == "pickle":
        copy = pickle.loads(pickle.dumps(model))
    elif how == "clone":
        copy = clone(model).fit(rows, y)
    else:
        model.save(tmp_path / "classifier")
        copy = M2Classifier.load(tmp_path / "classifier")
        assert isinstance(vae.load(tmp_path / "classifier"), SemiSupervisedVAE)
        assert copy.report_ == model.report_ and copy.history_ == model.history_
    for ask in ("predict", "predict_proba", "score_samples", "transform"):
        assert np.array_equal(getattr(copy, ask)(rows), getattr(model, ask)(rows))
    for label in (None, model.classes_[1]):
        assert np.array_equal(copy.sample(3, label), model.sample(3, label))
    assert copy.transduction_.tolist() == model.transduction_.tolist()


def test_a_file_of_a_dataframe_knows_the_names_of_its_columns(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    small().fit(frame, FEW).save(tmp_path / "classifier")
    model = M2Classifier.load(tmp_path / "classifier")
    assert model.predict(frame).shape == (60,)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("fedcba")])


# what a generative model can say


def test_rows_that_are_like_no_other_score_lower():
    model = small(updates=300, hidden_dims=(32,)).fit(X, FEW)
    usual = model.score_samples(X)
    for far in (5 * X, X + 8, -2 * X):
        assert np.median(model.score_samples(far)) < usual.min()


def test_rows_that_are_far_away_have_a_score_too(fitted):
    assert (fitted.score_samples(1e6 * X) < fitted.score_samples(X).min()).all()


@pytest.mark.parametrize("likelihood", estimator.LIKELIHOODS)
def test_scores_are_the_models_bound_in_the_mean(likelihood):
    """Rows are as the model has them: standardized, or in [0, 1]."""
    rows = (X - X.mean(0)) / X.std(0)
    if likelihood != "Gaussian":
        rows = (X - X.min()) / (X.max() - X.min())
    model = small(updates=60, likelihood=likelihood).fit(rows, FEW)
    with torch.no_grad():
        bounds = torch.stack([model.m2_.unlabeled_elbo(torch.from_numpy(rows)) for _ in range(500)])
    error = model.score_samples(rows) - bounds.mean(0).numpy()
    assert (np.abs(error) < 5 * bounds.std(0).numpy() / 10**0.5).all()  # ten draws of noise
    assert abs(error.mean()) < 5 * bounds.std(0).mean().item() / 10**0.5
    assert np.corrcoef(model.score_samples(rows), bounds.mean(0))[0, 1] > 0.7


def test_samples_look_like_rows_of_their_class():
    rows, y, few = clusters()
    rows = 1000 * rows + 500
    model = small(updates=300, hidden_dims=(32,)).fit(rows, few)
    for k in range(3):
        mean = model.sample(300, k, mean=True).mean(0)
        assert mean.argmax() == k  # the column that is larger in this class
        assert np.abs(mean - rows[y == k].mean(0)).max() < 1000
    assert 0.3 < model.sample(2000).std() / rows.std() < 3


# a thin layer


def by_hand(x, y, seed, hidden_dims, z_dim, num_batches):
    """Return an M2 and batches of a table from `vae` alone, made as the classifier makes them of its random state."""
    seed = int(np.random.RandomState(seed).randint(2**31 - 1))
    torch.manual_seed(seed)
    counts = torch.bincount(y[y >= 0])
    sizes = min(100, int(counts.sum())), min(200, int((y < 0).sum()))
    batches = SemiSupervisedBatches(x, y, *sizes, torch.Generator().manual_seed(seed), add_noise, num_batches)
    decoder, prior = vae.gaussian.ColumnGaussianDecoder, (counts + 1) / (counts + 1).sum()
    return build_m2(x.shape[1:], len(counts), z_dim, hidden_dims, decoder=decoder, label_prior=prior), batches


def test_its_model_is_what_the_recipes_train():
    model = small(updates=60, z_dim=2).fit(X, FEW)
    x, y = torch.from_numpy((X - X.mean(0)) / X.std(0)).float(), torch.from_numpy(FEW)
    m2, batches = by_hand(x, y, 0, (8,), 2, 3)
    train_m2(m2, batches, M2Recipe(label_epochs=2, frozen_epochs=3, unfrozen_epochs=15), verbose=False)
    trained = model.m2_.state_dict()
    assert trained.keys() == m2.state_dict().keys()
    for name, tensor in m2.state_dict().items():
        torch.testing.assert_close(trained[name], tensor.double(), rtol=1e-6, atol=1e-7)
    assert sum(epoch["updates"] for epoch in model.history_) == 60


@pytest.mark.parametrize(
    ("num_rows", "x_shape", "updates", "expected"),
    [
        (100, (6,), 150, 160),
        (100, (6,), None, 2000),
        (20_000, (6,), None, 2500),
        (60_000, (2,), None, 6000),
        (100, (28, 28), None, 3000),
        (100, (32, 32, 3), None, 1000),  # larger than 32 × 32 values
    ],
)
def test_how_long_it_trains(num_rows, x_shape, updates, expected, monkeypatch):
    """By default: 25 passes of the rows in batches of 200, within limits that depend on what a row is."""
    made = Counter()

    def count(loss, model, batches, recipe, folder, *, name, epochs, **options):
        made["M1" if name == "M1" else "M2"] += epochs * len(batches)
        return []

    monkeypatch.setattr(recipes, "fit", count)
    rows = np.random.RandomState(0).uniform(0, 1, (num_rows, *x_shape))
    small(updates=updates).fit(rows, np.where(np.arange(num_rows) < 40, np.arange(num_rows) % 2, -1))
    assert made == {"M2": expected} | ({"M1": expected} if len(x_shape) > 1 else {})


def test_it_trains_as_the_comparisons_row_of_m2_does():
    """Binary rows, the prior uniform."""
    random, number = np.random.RandomState(0), np.arange(440)
    rows = (random.rand(440, 12) < 0.1 + 0.8 * (np.arange(12) % 3 == number[:, None] % 3)).astype(np.float32)
    y = np.where(number < 30, number % 3, -1)
    model = small(updates=40, z_dim=2, label_prior=[1 / 3] * 3).fit(rows, y)
    assert model.likelihood_ == "Bernoulli"
    x, seed = torch.from_numpy(rows), int(np.random.RandomState(0).randint(2**31 - 1))
    torch.manual_seed(seed)
    data = SimpleNamespace(train_images=x, num_classes=3, x_shape=(12,))
    task = methods.Task(data, torch.from_numpy(y), torch.Generator().manual_seed(seed), None, None)
    recipe = M2Recipe(frozen_epochs=3, unfrozen_epochs=15)
    row = methods.M2(m1=None, z_dim=2, hidden_dims=(8,), classifier_dims=(8,), recipe=recipe)
    _, history, _ = row.train(task)
    losses = [[epoch["loss"] for epoch in epochs] for epochs in (model.history_, history)]
    assert len(losses[1]) == 20 and losses[0] == pytest.approx(losses[1], rel=1e-5)


# beside the rest of scikit-learn


def test_its_probabilities_can_be_calibrated():
    rows, y, _ = clusters(num_labels=240)
    model = small(updates=60).fit(rows, np.where(np.arange(240) < 60, y, -1))
    for calibrated in (
        CalibratedClassifierCV(FrozenEstimator(model)).fit(rows[60:120], y[60:120]),
        CalibratedClassifierCV(small(updates=60), cv=2).fit(rows[:120], y[:120]),
    ):
        np.testing.assert_allclose(calibrated.predict_proba(rows).sum(1), 1)
        assert (calibrated.predict(rows) == y).mean() > 0.5


@pytest.mark.filterwarnings(ASIDE)
def test_the_example_in_its_documentation_is_true():
    result = doctest.testmod(estimator)
    assert result.attempted and not result.failed


def test_it_can_be_asked_only_after_it_was_fitted(tmp_path):
    model = small()
    for ask in (
        lambda: model.predict(X),
        lambda: model.score_samples(X),
        model.sample,
        lambda: model.save(tmp_path / "x"),
    ):
        with pytest.raises(NotFittedError):
            ask()
    assert not any(tmp_path.iterdir())
