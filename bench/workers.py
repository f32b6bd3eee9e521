"""Runs one process for each row, so that its memory is its own, and has these processes work in
turns."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.program import MeasurementError
from bench.turns import pass_turn
from minimind.errors import MiniMindError
from minimind.runtime.devices import limit_threads

_served: object = None
"""The object of this process, in the process of a row."""


class WorkerError(MeasurementError):
    """Says that a row's process broke; the message holds the traceback of its error."""


class Worker:
    """Holds the parent's side of one row's process."""

    def __init__(self, name: str, serve: Callable[[Any], object], spec: Any) -> None:
        """Makes an object by `serve(spec)` in the process; its methods can then be called."""
        self.name = name
        # A forked process could not use its parent's GPU.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _start, (name, serve, spec))

    def call(self, method: str, *arguments: Any) -> Any:
        """Runs a method of the process's object and waits for its answer. Raises a MiniMindError as
        it was raised there, and WorkerError for any other error."""
        (answer,) = ask_all([self], method, *arguments)
        return answer

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        return self._pool.submit(_answer, self.name, method, arguments)

    def close(self) -> None:
        """Ends the process after the call under way."""
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def started(serve: Callable[[Any], object], specs: Sequence[Any]) -> Iterator[list[Worker]]:
    """Starts a worker for each spec, which has a `name`, and ends all workers after the block."""
    workers = [Worker(spec.name, serve, spec) for spec in specs]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.close)
        yield workers


def ask_all(workers: Sequence[Worker], method: str, *arguments: Any) -> list[Any]:
    """Runs a method in all workers at once; gives their answers in order."""
    try:
        answers = [worker.send(method, *arguments) for worker in workers]
        return [answer.result() for answer in answers]
    except BrokenProcessPool:
        names = ", ".join(worker.name for worker in workers)
        raise WorkerError(f"{names}: a process died, most often for want of memory") from None


def take_turns(
    workers: Sequence[Worker], method: str, rounds: Sequence[Any], seed: int, title: str
) -> list[list[Any]]:
    """Calls the method of each worker once a round, in random order, with the round's argument.
    Gives the answers of each worker."""
    answers: list[list[Any]] = [[] for _ in workers]
    generator = random.Random(seed)
    for argument in tqdm(rounds, desc=title, file=sys.stderr, disable=None):
        pass_turn()
        for turn in generator.sample(range(len(workers)), len(workers)):
            answers[turn].append(workers[turn].call(method, argument))
    return answers


def _start(name: str, serve: Callable[[Any], object], spec: Any) -> None:
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.pop("MASTER_PORT", None)  # each row's run has a port of its own
    limit_threads(1)
    global _served
    _served = serve(spec)


def _answer(name: str, method: str, arguments: Sequence[Any]) -> Any:
    try:
        return getattr(_served, method)(*arguments)
    except MiniMindError:
        raise
    except Exception:
        # The error is sent as text, since not every error can be pickled.
        raise WorkerError(f"{name}: {traceback.format_exc()}") from None


def reset_peak_resident(process: int | None = None) -> None:
    """Resets Linux's record of the peak (proc(5), clear_refs) of a process, by default this one.
    Where Linux refuses, the peak stays that since the start."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process or 'self'}/clear_refs").write_text("5")


def peak_resident(process: int | None = None) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{process or 'self'}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return None
