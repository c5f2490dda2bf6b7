"""What is installed: a wheel of `vae` alone, which runs on the core requirements; each requirement is said once."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import vae

ROOT = Path(__file__).parent.parent
USE = """
import json
import sys
from importlib.util import find_spec

sys.path += sys.argv[1:]  # which holds only the standard library until here
import vae
from vae.datasets import DataNotFoundError

others = ("matplotlib", "torchvision", "mlxtend", "sklearn", "joblib", "pytest", "experiments")
m2 = vae.load_pretrained("m2-100")
threes = m2.sample(100, label=3, mean=True)
try:
    vae.load_mnist()
except DataNotFoundError as error:
    told = str(error)
found = {"others": [name for name in others if find_spec(name)], "told": told, "shape": list(threes.shape)}
print(json.dumps(found | {"threes": (m2.classify(threes) == 3).sum().item()}))
"""


def run(*command, **options):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def required(lines, extras=("",)):
    """Yield those of the requirements that hold on this machine, with one of the extras."""
    for requirement in map(Requirement, lines):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def closure(lines, extras=("",)):
    """Yield the installed distributions of these requirements, of theirs, and so on."""
    for requirement in required(lines, extras):
        found = distribution(requirement.name)
        yield found
        yield from closure(found.requires or (), requirement.extras or ("",))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, because setuptools writes to the folder that it builds."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml asks for it to build")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("vae", "experiments", "examples", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / "copy" / name)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    run("-m", "pip", "wheel", folder / "copy", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An otherwise empty folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def metadata(installed):
    return Distribution.at(next(installed.glob("*.dist-info")))


def test_the_wheel_holds_vae_alone_and_its_trained_models(wheel):
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"vae", f"minimal_vae-{vae.__version__}.dist-info"}
    assert {f"vae/weights/{path.name}" for path in (ROOT / "vae/weights").iterdir()} <= {*names}


def test_it_is_used_beside_the_core_requirements_alone(installed, metadata, tmp_path, monkeypatch):
    """Without figures and downloads, which say what they lack."""
    (tmp_path / "core").mkdir()
    for found in closure(metadata.requires):
        for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (tmp_path / "core" / name).exists():
                (tmp_path / "core" / name).symlink_to(found.locate_file(name))
    monkeypatch.delenv("VAE_DATA", raising=False)
    found = json.loads(run("-I", "-S", "-c", USE, installed, tmp_path / "core", cwd=tmp_path))
    assert found["others"] == []
    assert found["shape"] == [100, 1, 28, 28] and found["threes"] > 90
    assert "pip install 'minimal-vae[data]'" in found["told"]


def test_requirements_txt_has_each_requirement_of_the_core_and_of_all_extras_of_all_once(metadata):
    def said(extras):
        for requirement in required(metadata.requires, extras):
            if requirement.name == metadata.name:
                yield from said(requirement.extras)
            else:
                yield f"{requirement.name}{requirement.specifier}"

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(set(said(("", "all"))))


def test_the_version_is_that_of_the_citation(metadata):
    assert metadata.version == vae.__version__
    assert re.search("^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == vae.__version__


def test_every_extra_that_is_named_exists(metadata):
    files = [ROOT / "Makefile", ROOT / ".ci/run", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    files += [path for folder in ("vae", "experiments", "tests") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"pip install .*?\[([a-z,]+)\]", path.read_text())}
    assert "experiments,cluster" in named
    assert {extra for name in named for extra in name.split(",")} <= {*metadata.metadata.get_all("Provides-Extra")}
