"""Ending what a benchmark has started."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import psutil


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """Ends at once what still runs of it, with the ranks that a launcher started in a session of
    their own: they would stay behind, at work on the GPU."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
