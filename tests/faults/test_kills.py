"""Kills at random moments, a few of them; tests/faults/kills.py makes as many as asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.faults("kill -9 at random moments, inside saves too", "resumed, it ends the same")
def test_runs_killed_at_random_moments_end_bitwise_as_if_left_alone(tmp_path: Path):
    script = Path(__file__).with_name("kills.py")
    few = ["--kills", "12", "--inside_saves", "4", "--on_two_ranks", "4"]
    done = subprocess.run(
        [sys.executable, str(script), *few, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
