"""Runs programs of a checkout, and ends them with all that they started."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.harness import ROOT


def own_environment() -> dict[str, str]:
    """Gives this process's environment for programs that import the code of this checkout."""
    search = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))}


def run_logged(
    command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float | None = None
) -> int:
    """Runs a command to its end with the output in `log`; gives its exit status. Raises
    subprocess.TimeoutExpired after `limit_s`. If the function ends early, it ends the command, too.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(limit_s)
        finally:
            kill_with_children(process)


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """Kills a process and all its children at once, also ranks that a launcher started in their own
    session: they would otherwise go on working on the GPU."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
