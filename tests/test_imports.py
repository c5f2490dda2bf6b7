"""What the library may know: imports run one way, no data set's sizes, and nothing that is read is run."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {f"vae.{path.stem}": ast.parse(path.read_text()) for path in sorted((ROOT / "vae").glob("*.py"))}
NETWORKS = {"vae.networks", "vae.conv", "vae.gaussian", "vae.models", "vae.stacked"}
SIZES = {784, 28, 50_000, 10}  # of MNIST: pixels, rows, images, classes


def imported(tree):
    """The modules that a module imports, anywhere in it, and the names that it takes from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


GRAPH = {name: set(imported(tree)) & MODULES.keys() for name, tree in MODULES.items()}


def test_the_library_imports_no_experiments_and_not_itself_in_a_circle():
    TopologicalSorter(GRAPH).prepare()
    for name, tree in MODULES.items():
        names = set(imported(tree))
        assert not {part.partition(".")[0] for part in names} & {"experiments", "tests", "examples"}, name
        assert {part for part in names if part.count(".") == 1 and part.startswith("vae.")} <= MODULES.keys(), name


@pytest.mark.parametrize("name", ["objectives", "marginalization", "distributions", "plotting", "data", "datasets"])
def test_theory_data_and_figures_know_no_network(name):
    seen, to_see = set(), {f"vae.{name}"}
    while to_see:
        seen |= to_see
        to_see = set().union(*(GRAPH[module] for module in to_see)) - seen
    assert not seen & NETWORKS


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"vae.datasets"}))
def test_only_the_data_sets_know_their_sizes(name):
    numbers = {node.value: node.lineno for node in ast.walk(MODULES[name]) if isinstance(node, ast.Constant)}
    forbidden = SIZES - {10} if name == "vae.plotting" else SIZES  # where 10 is the size of letters
    assert not {value: line for value, line in numbers.items() if value in forbidden}


def test_files_are_read_as_plain_values():
    for path in (path for folder in ("vae", "experiments") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        assert not {"pickle", "dill", "shelve", "marshal", "cloudpickle"} & set(imported(tree)), path
        for call in (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert not call.startswith(("torch.load(", "np.load(")) or "weights_only=True" in call, path
