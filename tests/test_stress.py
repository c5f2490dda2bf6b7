"""The stress of `tests.stress`, shortly."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_broken_file_and_exact_resume():
    command = [sys.executable, "-m", "tests.stress", "--kills", "5"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 kills: no broken file" in done.stdout
