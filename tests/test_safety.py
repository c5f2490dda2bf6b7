"""What the code never does: run what it reads, or a shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("vae", "benchmarks") for path in sorted((ROOT / folder).glob("**/*.py"))]
FORBIDDEN = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "pandas.read_pickle",
}


def violations(source):
    """The calls in `source` that could run what a file holds, or a shell."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        unsafe_load = name == "torch.load" and keywords.get("weights_only") != "True"
        pickled = keywords.get("allow_pickle", "False") != "False"
        if unsafe_load or pickled or name in FORBIDDEN or keywords.get("shell", "False") != "False":
            yield f"line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert list(violations(path.read_text())) == []


@pytest.mark.parametrize(
    "unsafe",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "subprocess.run(c, shell=True)",
        "np.load(p, allow_pickle=True)",
        "eval(x)",
        "exec(x)",
        "os.system(c)",
    ],
)
def test_what_is_unsafe_is_seen(unsafe):
    assert len(list(violations(unsafe))) == 1
