"""Fuzzing for a minute; tests/faults/fuzz.py takes as long as asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.faults("files and requests that are changed at random", "read or refused")
def test_what_others_made_is_read_or_refused(tmp_path: Path):
    script = Path(__file__).with_name("fuzz.py")
    few = ["--minutes", "1", "--targets", "rows", "run_folder", "requests"]
    done = subprocess.run(
        [sys.executable, str(script), *few, "--failures", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in few[3:]:
        assert f"{name} (hypothesis): " in done.stdout
