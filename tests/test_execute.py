"""Notebooks as they are committed."""

import nbformat

from vae.execute import execute


def test_a_widget_is_committed_as_its_text_because_its_kernel_is_gone(tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3"}
    cell = nbformat.v4.new_code_cell("import ipywidgets\nprint(1)\nipywidgets.IntSlider()")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "given.ipynb")
    (tmp_path / "out").mkdir()
    execute(tmp_path / "given.ipynb", tmp_path / "out")
    printed, shown = nbformat.read(tmp_path / "out" / "given.ipynb", as_version=4).cells[0].outputs
    assert printed.text == "1\n"
    assert dict(shown.data) == {"text/plain": "IntSlider(value=0)"}
