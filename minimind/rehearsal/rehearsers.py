"""Keeps the processes that rehearse, as their parent sees them: one for CPUs and one for GPUs."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict


class Part(TypedDict):
    """Groups runs that one process rehearses after one another, on the same device as rank 0 of
    `world_size` ranks."""

    device: str
    world_size: int
    runs: list[dict[str, Any]]


class Rehearser:
    """Represents a process that has imported what rehearsals need, and forks itself for each part
    of a job, so that what a rehearsal patches stays in its fork. A fork takes over this process's
    working directory and environment at the time."""

    def __init__(self, kind: str, stub: str) -> None:
        """Starts the process; `kind` and `stub` are the arguments of
        minimind/rehearsal/worker.py."""
        path = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "minimind.rehearsal.worker", kind, stub],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._lock = threading.Lock()
        atexit.register(self.close)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def rehearse(self, parts: Sequence[Part]) -> list[list[dict[str, Any]]]:
        """Gives one report for each run of each part. Raises RuntimeError where the process
        failed."""
        place = {"folder": os.getcwd(), "environment": dict(os.environ)}
        with self._lock, tempfile.TemporaryDirectory(prefix="minimind-rehearsal-") as folder:
            reports = [Path(folder) / f"{index}.jsonl" for index in range(len(parts))]
            logs = [path.with_suffix(".log") for path in reports]
            files = [{"reports": str(r), "log": str(o)} for r, o in zip(reports, logs, strict=True)]
            given = [{**part, **place, **file} for part, file in zip(parts, files, strict=True)]
            try:
                statuses = self._ask(given)
            except BaseException:
                self._process.kill()  # its answer would be taken for the next job's
                raise
            for status, log in zip(statuses, logs, strict=True):
                if status:
                    raise RuntimeError(
                        f"the rehearsal broke ({status}):\n{log.read_text()[-6000:]}"
                    )
            return [list(map(json.loads, path.read_text().splitlines())) for path in reports]

    def _ask(self, parts: list[dict[str, Any]]) -> list[int]:
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError):
            jobs.write(json.dumps({"parts": parts, "at_once": len(os.sched_getaffinity(0))}) + "\n")
            jobs.flush()
        if answer := answers.readline():
            return json.loads(answer)
        _, said = self._process.communicate()
        raise RuntimeError(f"the process that rehearses broke:\n{said[-6000:]}")

    def close(self) -> None:
        """Ends the process."""
        if self.is_running:
            self._process.communicate()


_REHEARSERS: dict[tuple[str, str], Rehearser] = {}
_LOCK = threading.Lock()


def find_rehearser(kind: str, stub: str) -> Rehearser:
    """Gives the process for a kind of device (cpu or gpu), and starts one where none runs."""
    with _LOCK:
        there = _REHEARSERS.get((kind, stub))
        if there is None or not there.is_running:
            there = _REHEARSERS[kind, stub] = Rehearser(kind, stub)
        return there


def close_rehearsers() -> None:
    """Ends all processes that rehearse, for a program that goes on for long: each holds the memory
    of an imported PyTorch."""
    with _LOCK:
        for rehearser in _REHEARSERS.values():
            rehearser.close()
        _REHEARSERS.clear()
