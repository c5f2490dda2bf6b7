"""The semi-supervised comparison: what methods see, what their results say, what stays, exact resume."""

import copy
import json
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from experiments import ssl
from experiments.m1 import M1Config
from experiments.methods import BY_KEY, COMPARISON, Method, Row
from experiments.runner import MODEL, digest, load_result, plain, shortened
from vae.checkpoint import load_state
from vae.evaluation import error_rate
from vae.recipes import M1Recipe
from vae.saving import load

COMMITTED = sorted((Path(__file__).parent.parent / "results/ssl").glob("*/*.json"))
SMALL_M1 = M1Config(z_dim=3, hidden_dims=(20,), batch_size=40, recipe=M1Recipe(epochs=30, lr=1e-2))
SIZES = {"hidden_dims": (20,), "classifier_dims": (20,), "z_dim": 2, "labeled_batch_size": 6}
SIZES |= {"unlabeled_batch_size": 40}


def small(key):
    """Return a row's method with small networks and at most four epochs of each stage, for `stripes`."""
    method = BY_KEY[key].method
    has = {field.name for field in fields(method)}
    changes = {"recipe": replace(shortened(method.recipe, 4), lr=1e-2)} if "recipe" in has else {}
    return replace(method, m1=method.m1 and SMALL_M1, **changes, **{key: SIZES[key] for key in SIZES.keys() & has})


@pytest.fixture(scope="module")
def m1(stripes):
    torch.manual_seed(0)
    return SMALL_M1.train(stripes.train_images, None)[0]


@pytest.mark.parametrize("name", COMPARISON)
def test_every_method_learns_from_training_images_and_the_labels_that_it_is_given_alone(name, stripes, m1, tmp_path):
    """The data that it gets hold nothing else. M1 stays as it is."""
    before, task = copy.deepcopy(m1.state_dict()), ssl.draw_task(stripes, 12, 0, m1, tmp_path)
    task.data = SimpleNamespace(train_images=stripes.train_images, num_classes=3, x_shape=stripes.x_shape)
    assert (task.y >= 0).sum() == 12
    classify, *_ = small(name).train(task)
    assert error_rate(classify, *stripes.part("test")) < 60  # guessing is wrong in 67 %
    assert_close(m1.state_dict(), before, rtol=0, atol=0)


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
        epochs = {"cpu_seconds": 30.0, "updates": 5}, {"cpu_seconds": 60.0, "updates": 5}
        return always_zero.classify, [epochs[0] | evaluate(always_one), epochs[1] | evaluate(always_zero)], None


@pytest.fixture
def add_row(monkeypatch):
    """A function that makes a method known by a key."""
    return lambda key, method: monkeypatch.setitem(BY_KEY, key, Row(key, method))


@pytest.fixture
def run(add_data, add_row, stripes, tmp_path):
    """A function that runs one cell of the comparison, with the method given, and returns its result."""
    add_data(stripes)

    def run(method, key="method", split=0, folder=tmp_path):
        add_row(key, method)
        ssl.run("stripes", [(key, 12, split)], 1, None, folder / "results", folder / "state")
        return json.loads((folder / f"results/ssl/stripes/{key}-12-{split}.json").read_text())

    return run


def test_errors_are_of_the_images_that_they_are_said_to_be_of_and_minutes_of_all_epochs(stripes, add_data, run):
    """All validation images are of class 1 and all test images of class 0, which every image is taken for."""
    ones, zeros = torch.ones_like(stripes.valid_labels), torch.zeros_like(stripes.test_labels)
    add_data(data := replace(stripes, valid_labels=ones, test_labels=zeros))
    result = run(Constant(m1=None), split=3)
    expected = {"name": "method-12-3", "method": "method", "num_labeled": 12, "split": 3, "seed": 3}
    expected |= {"valid_error": 100, "test_error": 0, "curve": [0, 100]}
    expected |= {"epochs": 2, "updates": 10, "cpu_minutes": 1.5, "data_checksum": data.checksum}
    assert result.items() >= expected.items()


def test_a_result_says_whether_its_m1_was_trained_in_bfloat16_even_on_another_machine(stripes, add_data, m1, tmp_path):
    add_data(stripes)
    m1 = copy.deepcopy(m1)
    for bf16 in (False, True):
        m1.about = {"bf16": bf16}
        result, _ = ssl.compare("stripes", "m1svm", 12, 0, BY_KEY["m1svm"].method, m1, tmp_path)
        assert (result["m1_bf16"], result["bf16"]) == (bf16, False)
    assert ssl.trained_m1(SMALL_M1, stripes, tmp_path).about == {"bf16": False}


def test_the_generative_side_takes_the_label_of_the_highest_bound(stripes):
    model = SimpleNamespace(labeled_elbo=lambda x, y: -(y - 1).square() - torch.zeros(len(x)))  # highest for label 1
    other = (stripes.valid_labels[::5] != 1).float().mean().item()
    assert ssl._error_by_bound(model, stripes) == pytest.approx(100 * other, abs=0.01)
    assert 0 < other < 1


def test_the_kl_divergence_of_style_is_of_the_posterior_at_the_guessed_label(stripes, m1, tmp_path):
    _, _, model = small("m1m2").train(ssl.draw_task(stripes, 12, 0, m1, tmp_path))
    model.m2.encoder.network.output.weight.data.zero_()
    model.m2.encoder.network.output.bias.data = torch.tensor([1.0, 1, 0, 0])  # Normal(1, 1) for each of two latents
    assert ssl._kl_of_style(model, stripes.valid_images) == pytest.approx(1)  # ½ + ½ nat
    with torch.no_grad():
        model.m2.encoder.network.label_embedding.weight += torch.arange(3.0).unsqueeze(1)
        model.m2.encoder.network.output.weight[0] = 1
        z1, y = model.features(stripes.valid_images).chunk(2, 1)[0], model.classify(stripes.valid_images)
        mean = model.m2.encoder(z1, y).mean
    assert ssl._kl_of_style(model, stripes.valid_images) == pytest.approx((mean.square().sum(1) / 2).mean().item())


def test_a_method_gets_the_m1_of_its_settings_trained_once_on_this_data_set(run, add_row, tmp_path):
    m1s = {"first": replace(SMALL_M1, z_dim=2), "second": replace(SMALL_M1, z_dim=4)}
    for name, config in m1s.items():
        add_row(name, Constant(config))
    SEEN.clear()
    ssl.run("stripes", [(name, 12, split) for name in m1s for split in (0, 1)], 1, None, tmp_path, tmp_path / "state")
    assert [m1.encoder.z_dim for m1 in SEEN] == [2, 2, 4, 4]
    files = {name: tmp_path / "state/ssl/stripes/m1" / digest(config) / "M1.pt" for name, config in m1s.items()}
    for m1, path in zip(SEEN[::2], files.values(), strict=True):
        assert_close(m1.state_dict(), load_state(path)["model"], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "called"), [("mlp", "m1svm"), ("m2", "mlp"), ("m1m2", "m2")])
def test_a_trained_model_is_that_of_its_settings_whatever_it_is_called_and_stays_and_repeats_the_errors(
    name, called, run, stripes, tmp_path
):
    result = run(small(name), called)
    folder = tmp_path / f"state/ssl/stripes/{called}-12-0"
    assert {path.name for path in folder.iterdir()} == {"log", MODEL}
    model = load(folder / MODEL)
    assert result["settings"] == plain(small(name))
    for part in ("valid", "test"):
        assert round(error_rate(model.classify, *stripes.part(part)), 2) == result[f"{part}_error"]


def test_results_are_seeded_by_their_split(run, tmp_path):
    splits = ((0, "a"), (0, "b"), (1, "a"))
    first, again, other = (run(small("m1knn"), split=split, folder=tmp_path / folder) for split, folder in splits)
    assert first | {"cpu_minutes": 0} == again | {"cpu_minutes": 0}
    assert first["valid_error"] != other["valid_error"] or first["test_error"] != other["test_error"]


def test_committed_results_are_of_todays_settings():
    for path in COMMITTED:
        result = load_result(path)
        assert result["settings"] == plain(BY_KEY[result["method"]].method), result["name"]
        assert result["name"] == f"{result['method']}-{result['num_labeled']}-{result['split']}"
        assert result["data"] == path.parent.name and result.keys() >= {"data_checksum", "versions", "updates"}
