"""What a benchmark started ends with it, whatever session it put itself in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from bench.processes import kill_with_children

LAUNCHER = """
import pathlib, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
pathlib.Path(sys.argv[1] + ".new").write_text(str(child.pid))
pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
time.sleep(60)
"""


def test_ranks_in_a_session_of_their_own_end_too(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(said)])
    while not said.exists():
        assert process.poll() is None
    child = psutil.Process(int(said.read_text()))
    kill_with_children(process)
    assert process.returncode == -9
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    kill_with_children(process)  # of what has ended, nothing
