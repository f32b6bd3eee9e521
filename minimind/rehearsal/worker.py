"""Runs the process that rehearses: it imports once, then forks itself for each part of a job.

`python -m minimind.rehearsal.worker KIND STUB`: KIND is cpu or gpu; STUB is the path of the library
to load before PyTorch, or "". Each line of stdin is a job in JSON; the exit statuses of its parts
go to stdout as one line.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

_LATE = ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "deepspeed.compile.backend")
"""Modules that PyTorch imports with the first tensor without storage, and DeepSpeed with the first
engine."""


def main(argv: Sequence[str]) -> int:
    kind, stub = argv
    prepare(kind, stub)
    for line in sys.stdin:
        job = json.loads(line)
        sys.stdout.write(json.dumps(_run(job["parts"], job["at_once"])) + "\n")
        sys.stdout.flush()
    return 0


def prepare(kind: str, stub: str) -> None:
    """Imports what rehearsals need, so that every fork has it already."""
    if stub:
        ctypes.CDLL(stub, ctypes.RTLD_GLOBAL)  # before PyTorch looks for its devices
    from minimind.rehearsal.fake_machine import set_environment

    set_environment(kind, 1)
    for name in ("minimind.rehearsal.steps", "deepspeed", *_LATE):
        importlib.import_module(name)
    # Takes the imported objects out of the garbage collector's sight: they stay for good.
    gc.freeze()


def _run(parts: Sequence[dict[str, Any]], at_once: int) -> list[int]:
    waiting, running = list(enumerate(parts)), dict[int, int]()
    statuses = [0] * len(parts)
    while waiting or running:
        while waiting and len(running) < at_once:
            index, part = waiting.pop(0)
            running[_fork(part)] = index
        pid, status = os.wait()
        statuses[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    return statuses


def _fork(part: dict[str, Any]) -> int:
    """Forks a process that rehearses the part and logs to the part's file. Gives its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(part["log"], os.O_CREAT | os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log, stream.fileno())
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        rehearse_part(part)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def rehearse_part(part: dict[str, Any]) -> None:
    """Rehearses the runs of one part, and writes one line of JSON per run into the part's file of
    reports."""
    from minimind.errors import MiniMindError
    from minimind.rehearsal.steps import Rehearsals

    os.chdir(part["folder"])
    os.environ.clear()
    os.environ.update(part["environment"])
    rehearsals = Rehearsals(part["device"], part["world_size"])
    with open(part["reports"], "a", encoding="utf-8") as file:
        for run in part["runs"]:
            began = time.perf_counter()
            try:
                rehearse = rehearsals.generate if "params" in run else rehearsals.rehearse
                report = rehearse(run)
                report["seconds"] = time.perf_counter() - began
            except MiniMindError as error:
                report = {"refused": type(error).__name__, "message": str(error)}
            except Exception:
                report = {"broke": traceback.format_exc()}
            file.write(json.dumps(report) + "\n")
            file.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
