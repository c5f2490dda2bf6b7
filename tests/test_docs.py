"""The repository: documents name what exists, and their examples run."""

import base64
import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from experiments import m1, page, ssl
from experiments.__main__ import parse
from vae import load_pretrained

ROOT = Path(__file__).parent.parent
FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
NOTEBOOKS = [*ROOT.glob("*.ipynb"), *ROOT.glob("docs/*.ipynb")]
for path in NOTEBOOKS:
    cells = json.loads(path.read_text())["cells"]
    TEXTS[str(path.relative_to(ROOT))] = "\n".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
    )
EXAMPLE = ROOT / "examples/few_labels.py"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def slugs(text):
    """Return the anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_and_anchors_resolve(name):
    for link in LINK.findall(TEXTS[name]):
        target, _, anchor = link.partition("#")
        if not target.startswith(("https://", "http://")):
            path = (ROOT / name).parent / target if target else ROOT / name
            assert path.exists(), link
            assert not anchor or path.suffix != ".md" or anchor in slugs(path.read_text()), link


def test_every_figure_is_shown_on_one_page_or_drawn_in_a_notebook():
    shown = {name: re.findall(r"!\[[^]]+\]\((?:\.\./)?_images/([^)]+)\)", text) for name, text in TEXTS.items()}
    readme, pages = shown.pop("README.md"), [figure for figures in shown.values() for figure in figures]
    assert len(readme) == len(set(readme)) and len(pages) == len(set(pages))
    notebooks = "".join(path.read_text() for path in NOTEBOOKS)
    unused = {path.name for path in (ROOT / "_images").iterdir()} - {*readme, *pages}
    assert not [name for name in unused if re.sub(r"_\d_", "_{digit}_", name) not in notebooks]


def test_make_runs_every_notebook():
    named = re.search(r"^NOTEBOOKS = (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in NOTEBOOKS)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_paths_exist(name):
    for command in re.findall(r"python -m experiments (?!--help)([^`#\n…]+)", TEXTS[name]):
        options = parse(shlex.split(command))
        assert options.command != "ssl" or ssl.cells_of(options.methods)
        assert options.command != "m1" or all(map(m1.runs_of, options.names))
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {*re.findall(r"(?:`|^)make ([\w-]+)", TEXTS[name], re.MULTILINE)} <= {*targets}
    code = r"(?:`|python )((?:\.ci|vae|experiments|tests|examples|docs|results|_images)/[\w./-]+)"
    assert not [path for path in re.findall(code, TEXTS[name]) if not (ROOT / path).exists()]
    modules = re.findall(r"python -m ((?:experiments|tests|vae)[\w.]*)", TEXTS[name])
    assert all(any((ROOT / m.replace(".", "/")).with_suffix(s).exists() for s in (".py", "")) for m in modules)


def test_the_lock_file_has_every_requirement_in_a_version_that_satisfies_it():
    lines = {name: (ROOT / f"requirements.{name}").read_text().splitlines() for name in ("txt", "lock")}
    wanted, locked = ([line for line in lines[name] if not line.startswith("#")] for name in ("txt", "lock"))
    versions = dict(line.split("==") for line in locked)
    missing = [line for line in wanted if versions.get(Requirement(line).name) not in Requirement(line).specifier]
    assert not missing, "make lock"


def test_ci_first_runs_the_tests_as_a_newcomer_does_with_nothing_installed_or_copied_before():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    before = [line for line in lines[: lines.index("make test")] if not line.startswith("#")]
    assert not [line for line in before if re.search(r"pip install|make |\.venv|mnist|VAE_DATA", line)]


def test_the_example_predicts_rows_with_gaps_text_and_photos_and_says_what_answers(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wrong] = re.findall(r"wrong on the \d+ rows without a label: (\S+)%", done.stdout)
    assert float(wrong) < 20  # the most frequent of three kinds would be wrong on 60
    assert len(re.findall(r"^.* answers$", done.stdout, re.MULTILINE)) == 2
    assert "(1, 3, 16, 16) (1, 3, 16, 16)" in done.stdout
    assert re.search(r"from the file: \['(temple|flower)' ", done.stdout)
    assert (tmp_path / "patches.safetensors").exists()


def test_the_readmes_snippet_runs_and_what_it_makes_can_be_plotted(monkeypatch, embedded):
    monkeypatch.setattr("vae.load_mnist", lambda: embedded)
    [code] = (code for code in re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL) if "load_pre" in code)
    exec(code, made := {})
    shown = {name: value.numpy() for name, value in made.items() if torch.is_tensor(value)}
    assert shown["threes"].shape == shown["sevens"].shape == (9, 1, 28, 28)


def test_the_committed_page_is_made_of_these_sources_and_weights():
    committed = page.PAGE.read_text("utf-8")
    html, css, js = ((page.SOURCE / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    assert css in committed and js in committed and len(committed) < 6e6
    kept = [line for line in html.splitlines() if not re.search(r"{|'self'|page\.(css|js)", line)]
    assert len(kept) > 50 and not [line for line in kept if line not in committed]
    assert "{" not in re.sub("<(style|script)>.*?</(style|script)>", "", committed, flags=re.DOTALL)  # all filled in
    for name in page.PARTS:
        packed = page.pack_model(name, load_pretrained(name))
        blocks = re.search(f'id="{name}">([^<]*)<', committed)[1], packed
        assert len({gzip.decompress(base64.b64decode(block)) for block in blocks}) == 1
