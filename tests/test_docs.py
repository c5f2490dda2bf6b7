"""The documents: links, anchors, figures, commands and paths exist."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import m1, ssl
from experiments.__main__ import parse

ROOT = Path(__file__).parent.parent
FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
MADE = {"results/ssl/fashion-mnist"}  # by commands
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


def test_every_figure_is_shown_on_one_page_once_or_in_the_readme():
    shown = {name: re.findall(r"!\[[^]]+\]\((?:\.\./)?_images/([^)]+)\)", text) for name, text in TEXTS.items()}
    readme, pages = shown.pop("README.md"), [figure for figures in shown.values() for figure in figures]
    assert len(readme) == len(set(readme)) and len(pages) == len(set(pages))
    assert {*readme, *pages} == {path.name for path in (ROOT / "_images").iterdir()}


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_paths_exist(name):
    for command in re.findall(r"python -m experiments (?!--help)([^`#\n…]+)", TEXTS[name]):
        options = parse(shlex.split(command))
        assert options.command != "ssl" or ssl.cells_of(options.methods)
        assert options.command != "m1" or all(map(m1.runs_of, options.names))
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert {*re.findall(r"(?:`|^)make ([\w-]+)", TEXTS[name], re.MULTILINE)} <= {*targets}
    code = r"(?:`|python )((?:\.ci|vae|experiments|tests|examples|docs|results|_images)/[\w./-]+)"
    assert not [path for path in re.findall(code, TEXTS[name]) if not (ROOT / path).exists() and path not in MADE]
    modules = re.findall(r"python -m ((?:experiments|tests|vae)[\w.]*)", TEXTS[name])
    assert all(any((ROOT / m.replace(".", "/")).with_suffix(s).exists() for s in (".py", "")) for m in modules)
