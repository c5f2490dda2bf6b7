"""The semi-supervised comparison: what methods see, what their results say, what stays, exact resume."""

import copy
import json
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from test_training import Killed
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.testing import assert_close

from experiments import meaning, ssl
from experiments.m1 import M1Config
from experiments.methods import ESTIMATORS, EVERY, METHODS, MORE, UNDONE, Method, Task
from experiments.runner import MODEL, digest, load_result, plain, shortened, write_result
from vae import recipes
from vae.checkpoint import load_state
from vae.data import PARTS, labeled_split
from vae.evaluation import error_rate
from vae.models import SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder
from vae.recipes import M1Recipe
from vae.saving import load

COMMITTED = sorted((Path(__file__).parent.parent / "results/ssl/mnist").glob("*.json"))
SMALL_M1 = M1Config(z_dim=3, hidden_dims=(20,), batch_size=40, recipe=M1Recipe(epochs=30, lr=1e-2))
SIZES = {"hidden_dims": (20,), "classifier_dims": (20,), "z_dim": 2, "labeled_batch_size": 6}
SIZES |= {"unlabeled_batch_size": 40}


def small(name):
    """Return a method with small networks and at most four epochs of each stage, for `stripes`."""
    method, has = EVERY[name], {field.name for field in fields(EVERY[name])}
    changes = {"recipe": replace(shortened(method.recipe, 4), lr=1e-2)} if "recipe" in has else {}
    return replace(method, m1=method.m1 and SMALL_M1, **changes, **{key: SIZES[key] for key in SIZES.keys() & has})


@pytest.fixture(scope="module")
def m1(stripes):
    torch.manual_seed(0)
    return SMALL_M1.train(stripes.train_images, None)[0]


@pytest.fixture
def make_task(stripes, m1, tmp_path):
    """A function that returns the task of 12 labels, in always the same draw; its data may be given."""

    def make(data=stripes, folder=tmp_path):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        return Task(data, *labeled_split(stripes.train_labels, 12, generator, 3), generator, m1, folder)

    return make


@pytest.fixture
def inputs():
    """What encoders and classifiers are given where gradients are wanted: images, and latents."""
    seen = {"images": [], "latents": []}

    def note(module, arguments):
        if torch.is_grad_enabled() and isinstance(module, Encoder | Classifier):
            if arguments[0].dim() == 4:
                seen["images"].append(arguments[0].flatten(1))
            elif isinstance(module, Classifier):
                seen["latents"].append(arguments[0].detach())

    hook = register_module_forward_pre_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", ["m1", "mlp", "m1mlp", "m2", "m1m2", "m1m2_skips"])
def test_networks_learn_from_training_images_alone_in_black_and_white_drawn_anew(name, make_task, stripes, inputs):
    """And M2 on M1's latents from draws of them, none of which comes twice."""
    images = {f"{part}_images": stripes.part(part)[0].clone() for part in PARTS}
    for part, pixels in images.items():
        pixels[:, 0, 0, 0] = 0 if part == "train_images" else 1  # a mark
    marked = replace(stripes, **images)
    if name == "m1":
        ssl.trained_m1(SMALL_M1, marked, make_task().folder)
    else:
        task = make_task(marked)
        task.folder = None  # or the first batch would be looked at twice
        small(name).train(task)
    if name != "m1m2":
        pixels = torch.cat(inputs["images"])
        assert set(pixels.unique().tolist()) == {0, 1}
        assert not pixels[:, 0].any()
        assert len(pixels.unique(dim=0)) > 1.5 * (12 if "mlp" in name else 240)
    if "m1m2" in name:
        latents = torch.cat(inputs["latents"])
        assert len(latents.unique(dim=0)) == len(latents) > 900


@pytest.mark.parametrize("name", METHODS)
def test_no_method_sees_a_label_that_it_was_not_given_nor_changes_m1(name, make_task, stripes, m1, tmp_path):
    before = {key: value.clone() for key, value in m1.state_dict().items()}
    classify, *_ = small(name).train(make_task())
    wrong = {f"{part}_labels": torch.randint(3, (len(stripes.part(part)[1]),)) for part in PARTS}
    labeled = make_task().labeled
    wrong["train_labels"][labeled] = stripes.train_labels[labeled]
    classify_too, *_ = small(name).train(make_task(replace(stripes, **wrong), tmp_path / "other"))
    assert torch.equal(classify(stripes.test_images), classify_too(stripes.test_images))
    assert_close(m1.state_dict(), before, rtol=0, atol=0)


class Estimator:
    """Stands for a scikit-learn classifier and keeps what it is given."""

    def __init__(self, **options):
        Estimator.options = options

    def fit(self, features, labels):
        Estimator.features, Estimator.labels = torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("name", "options", "num_unlabeled"),
    [
        ("m1knn", {"n_neighbors": 1}, 0),
        ("m1svm", {"C": 1}, 0),
        ("m1spread", {"kernel": "knn", "n_neighbors": 10, "alpha": 0.8, "max_iter": 100}, 50),
    ],
)
def test_estimators_get_their_settings_and_see_labels_of_labeled_images_only(
    name, options, num_unlabeled, make_task, m1, stripes, monkeypatch
):
    """And as many unlabeled images as they ask for, of every class."""
    task, method = make_task(), small(name)
    monkeypatch.setitem(ESTIMATORS, method.estimator, Estimator)
    replace(method, num_unlabeled=num_unlabeled, options=method.options | {"more": 1}).train(task)
    assert Estimator.options == options | {"more": 1}
    means = m1.encoder(stripes.train_images).mean.detach()
    assert_close(Estimator.features[:12], means[task.labeled])
    assert torch.equal(Estimator.labels[:12], stripes.train_labels[task.labeled])
    assert Estimator.labels[12:].tolist() == [-1] * num_unlabeled
    rows = torch.cdist(Estimator.features[12:], means).argmin(1)
    assert len(set(rows.tolist()) & set(task.unlabeled.tolist())) == num_unlabeled
    assert (torch.bincount(stripes.train_labels[rows], minlength=3) >= num_unlabeled / 6).all()


SEEN = []


def constant(label, x):
    return torch.full((len(x),), label)


@dataclass(frozen=True)
class Constant(Method):
    """Calls every image a 0, after two epochs of half a minute and a minute."""

    unlabeled_batch_size: int = 40

    def train(self, task, evaluate):
        SEEN.append(task.m1)
        always_one, always_zero = (SimpleNamespace(classify=partial(constant, label)) for label in (1, 0))
        history = [{"cpu_seconds": 30.0} | evaluate(always_one), {"cpu_seconds": 60.0} | evaluate(always_zero)]
        return always_zero.classify, history, None


@pytest.fixture
def run(add_data, stripes, tmp_path, monkeypatch):
    """A function that runs one cell of the comparison, with the method given, and returns its result."""
    add_data(stripes)

    def run(config, name="method", split=0, folder=tmp_path):
        monkeypatch.setitem(EVERY, name, config)
        ssl.run("stripes", [(name, 12, split)], 1, None, folder / "results", folder / "state")
        return json.loads((folder / f"results/ssl/stripes/{name}-12-{split}.json").read_text())

    return run


def test_a_result_says_what_it_is_of_and_errors_are_of_the_images_that_they_are_said_to_be_of(stripes, add_data, run):
    """All validation images are of class 1 and all test images of class 0, which every image is taken for."""
    ones, zeros = torch.ones_like(stripes.valid_labels), torch.zeros_like(stripes.test_labels)
    data = replace(stripes, valid_labels=ones, test_labels=zeros)
    add_data(data)
    result = run(Constant(m1=None), split=3)
    assert result.pop("versions")["torch"] == torch.__version__.partition("+")[0]
    expected = {"name": "method-12-3", "data": "stripes", "method": "method", "labels": 12, "split": 3, "seed": 3}
    expected |= {"bf16": False, "m1_bf16": None}
    expected |= {"valid_error": 100, "test_error": 0, "epochs": 2, "updates": 2 * (228 // 40), "cpu_minutes": 1.5}
    expected |= {"curve": [0, 100], "valid_bound": None, "m1_valid_elbo": None, "m1_active_latents": None}
    expected |= {"valid_error_by_bound": None}
    expected |= {"data_checksum": data.checksum, "settings": {"m1": None, "unlabeled_batch_size": 40}}
    assert result == expected
    assert data.checksum != stripes.checksum


def test_a_result_says_whether_its_m1_was_trained_in_bfloat16_even_on_another_machine(stripes, add_data, m1, tmp_path):
    add_data(stripes)
    m1 = copy.deepcopy(m1)
    for bf16 in (False, True):
        m1.about = {"bf16": bf16}
        result, _ = ssl.compare("stripes", "m1svm", 12, 0, METHODS["m1svm"], m1, tmp_path)
        assert (result["m1_bf16"], result["bf16"]) == (bf16, False)
    assert ssl.trained_m1(SMALL_M1, stripes, tmp_path).about == {"bf16": False}


def test_the_generative_side_takes_the_label_of_the_highest_bound(stripes):
    model = SimpleNamespace(labeled_elbo=lambda x, y: -(y - 1).square() - torch.zeros(len(x)))  # highest for label 1
    other = (stripes.valid_labels[::5] != 1).float().mean().item()
    assert ssl._error_by_bound(model, stripes) == pytest.approx(100 * other, abs=0.01)
    assert 0 < other < 1


def test_a_method_gets_the_m1_of_its_settings_trained_once_on_this_data_set(run, tmp_path, monkeypatch):
    m1s = {"first": replace(SMALL_M1, z_dim=2), "second": replace(SMALL_M1, z_dim=4)}
    for name, config in m1s.items():
        monkeypatch.setitem(EVERY, name, Constant(config))
    SEEN.clear()
    ssl.run("stripes", [(name, 12, split) for name in m1s for split in (0, 1)], 1, None, tmp_path, tmp_path / "state")
    folder = tmp_path / "state/ssl/stripes/m1"
    assert {path.name for path in folder.iterdir()} == set(map(digest, m1s.values()))
    for m1, (name, config) in zip(SEEN[::2], m1s.items(), strict=True):
        assert m1.encoder.z_dim == config.z_dim
        assert load_result(tmp_path / f"ssl/stripes/{name}-12-1.json")["settings"]["m1"] == plain(config)
        assert_close(m1.state_dict(), load_state(folder / digest(config) / "M1.pt")["model"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "called"),
    [("mlp", "m1svm"), ("m2", "mlp"), ("m1m2_joint", "m2_naive"), ("m1m2_skips", "m1m2_longer"), ("m1m2_skips", "m2")],
)
def test_a_trained_model_is_that_of_its_settings_whatever_it_is_called_and_stays_and_repeats_the_errors(
    name, called, run, make_task, stripes, tmp_path
):
    result = run(small(name), called)
    folder = tmp_path / f"state/ssl/stripes/{called}-12-0"
    assert {path.name for path in folder.iterdir()} == {"log", MODEL}
    model = load(folder / MODEL)
    assert result["settings"] == plain(small(name))
    for part in ("valid", "test"):
        assert round(error_rate(model.classify, *stripes.part(part)), 2) == result[f"{part}_error"]
    assert result["test_error"] < 60  # guessing is wrong in 67 %


def test_every_method_learns_digits_in_its_epochs(embedded, add_data, tmp_path, monkeypatch):
    add_data(embedded)
    for name, method in METHODS.items():
        m1 = method.m1 and replace(method.m1, recipe=shortened(method.m1.recipe, 10))
        monkeypatch.setitem(EVERY, name, replace(method.smoke(), m1=m1))
    longer = replace(EVERY["m1m2"].recipe, unfrozen_epochs=30)  # the one without a stage on labels alone
    monkeypatch.setitem(EVERY, "m1m2", replace(EVERY["m1m2"], unlabeled_batch_size=50, recipe=longer))
    ssl.run("embedded-mnist", [(name, 1000, 3) for name in METHODS], 1, None, tmp_path, tmp_path / "state")
    for result in (load_result(tmp_path / f"ssl/embedded-mnist/{name}-1000-3.json") for name in METHODS):
        assert 0 < result["test_error"] < 75  # guessing is wrong in 90 %
        assert 0 < result["valid_error"] < 75
        assert result["epochs"] == sum(n for key, n in result["settings"].get("recipe", {}).items() if "epochs" in key)


def test_results_are_seeded_by_their_split(run, tmp_path):
    splits = ((0, "a"), (0, "b"), (1, "a"))
    first, again, other = (run(small("m1knn"), split=split, folder=tmp_path / folder) for split, folder in splits)
    assert first | {"cpu_minutes": 0} == again | {"cpu_minutes": 0}
    assert first["valid_error"] != other["valid_error"] or first["test_error"] != other["test_error"]


STAGES = {"mlp": ["labels"], "m2": ["labels", "frozen", "unfrozen"]}
STAGES["m1m2_skips"] = [*STAGES["m2"], "probe", "joint"]


@pytest.mark.parametrize("name", STAGES)
def test_a_cell_killed_in_any_stage_resumes_after_its_last_epoch(name, run, tmp_path, monkeypatch):
    """Killed in the second epoch of a stage, it trains that epoch and what follows, and ends as if nothing was."""
    steps, fit, killed_in = [], recipes.fit, None

    def counting(loss, learner, batches, *, name, **options):
        calls = count()

        def counted(batch):
            if next(calls):  # the first loss only tells which run it is
                steps.append(name)
            if name == killed_in and steps.count(name) == 5 + 3:  # of 5 batches in an epoch
                raise Killed
            return loss(batch)

        return fit(counted, learner, batches, name=name, **options)

    monkeypatch.setattr(recipes, "fit", counting)
    reference, all_steps = run(small(name), folder=tmp_path / "reference"), steps.copy()
    for stage in STAGES[name]:
        steps.clear()
        killed_in = stage
        with pytest.raises(Killed):
            run(small(name), folder=tmp_path / stage)
        steps.clear()
        killed_in = None
        resumed = run(small(name), folder=tmp_path / stage)
        assert resumed | {"cpu_minutes": 0} == reference | {"cpu_minutes": 0}
        assert steps == all_steps[all_steps.index(stage) + 5 :]
        models = (tmp_path / folder / "state/ssl/stripes/method-12-0" / MODEL for folder in ("reference", stage))
        assert_close(*(load(path).state_dict() for path in models), rtol=0, atol=0)


def test_a_comparison_holds_every_method_and_variants_with_100_labels_once_and_no_trial():
    cells, counts = ssl.cells_of(), (600, 1000, 3000)
    assert len(set(cells)) == len(cells)
    assert {cell[:2] for cell in cells if cell[1] > 100} == {
        (method, labels) for method in METHODS for labels in counts
    }
    assert {method for method, *_ in cells} == METHODS.keys() | UNDONE.keys() | MORE.keys()
    assert {split for _, _, split in cells} == set(range(5))
    assert ssl.cells_of(["m2_bf16"], [600], [7, 8]) == [("m2_bf16", 600, 7), ("m2_bf16", 600, 8)]


def test_committed_results_are_of_todays_settings():
    for result in map(load_result, COMMITTED):
        assert result["settings"] == plain(EVERY[result["method"]]), result["name"]
        assert result["name"] == f"{result['method']}-{result['labels']}-{result['split']}"
        assert result["data"] == "mnist" and result.keys() >= {"data_checksum", "versions", "updates"}


def test_the_figure_of_what_y_means_shows_each_image_and_then_its_style_with_every_label(
    add_data, stripes, tmp_path, monkeypatch
):
    add_data(replace(stripes, name="mnist"))
    for name, path in {"STATE": tmp_path / "state", "RESULTS": tmp_path, "DIGITS": (2, 0)}.items():
        monkeypatch.setattr(meaning, name, path)
    networks = Encoder(stripes.x_shape, 2, (8,), 3), BernoulliDecoder(2, stripes.x_shape, (8,), 3)
    for number, method in enumerate(meaning.METHODS):
        m2 = SemiSupervisedVAE(*networks, Classifier(stripes.x_shape, 3, (8,)))
        m2.save(tmp_path / f"state/ssl/mnist/{method}-100-0" / MODEL)
        result = {
            "name": f"{method}-100-0",
            "settings": {},
            "cpu_minutes": 1,
            "test_error": 9.6,
            "updates": 5000 * number,
        }
        write_result(result, tmp_path / f"ssl/mnist/{method}-100-0.json")
    drawn = {}
    monkeypatch.setattr(meaning, "image_panels", lambda panels, columns: drawn.update(panels) or plt.figure())
    meaning.write(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert list(drawn) == ["0 updates, error 10 %", "5,000 updates, error 10 %", "10,000 updates, error 10 %"]
    x = torch.stack([stripes.test_images[stripes.test_labels == k][0] for k in (2, 0)])
    rows = drawn["10,000 updates, error 10 %"].unflatten(0, (2, 5))
    assert torch.equal(rows[:, 0], x) and not rows[:, 1].any()
    z = m2.encoder(x, m2.classify(x)).mean
    for label in range(3):
        assert_close(rows[:, 2 + label], m2.decoder(z, torch.tensor([label, label])).mean)
