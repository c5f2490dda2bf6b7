"""The example, run as a reader runs it."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples/own_data.py"


def test_m2_on_own_images_learns_is_saved_loaded_and_sampled(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [labels_only, m2] = map(float, re.search(r"test error: labels only (\S+) %, M2 (\S+) %", done.stdout).groups())
    assert m2 <= labels_only + 2  # of 200 test images: chance alone is a point and a half
    assert m2 < 15  # guessing the most frequent of 7 classes is wrong in more than 70 %
    [classes] = re.findall(r"new images are of the classes \[(.*)\]", done.stdout)
    assert all(0 <= int(k) < 7 for k in classes.split(","))
    assert "(5, 1, 8, 8)" in done.stdout
    assert (tmp_path / "own_data.safetensors").exists()


def test_it_is_short_enough_to_adapt():
    assert len(EXAMPLE.read_text().splitlines()) <= 60
