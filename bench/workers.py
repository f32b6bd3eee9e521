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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.program import MeasurementError
from bench.turns import pass_turn
from minimind.errors import MiniMindError
from minimind.runtime.devices import limit_threads

_STOP_S = 10


class WorkerError(MeasurementError):
    """Says that a row's process broke; the message holds its traceback."""


class Worker:
    """Holds the parent's side of one row's process."""

    def __init__(self, name: str, serve: Callable[[Any], object], spec: Any) -> None:
        """Starts the process, which makes an object by `serve(spec)`; its methods can then be
        called."""
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, serve, spec))
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Runs a method of the process's object and waits for its answer. Raises a MiniMindError as
        it was raised there, and WorkerError for any other error."""
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((method, arguments))

    def receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(_STOP_S)
            raise WorkerError(
                f"{self.name}: the process died with exit code {self._process.exitcode} "
                "(-9: killed, most often for want of memory)"
            ) from None
        if kind == "user_error":
            raise value
        if kind == "error":
            raise WorkerError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        self._connection.close()
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def started(serve: Callable[[Any], object], specs: Sequence[Any]) -> Iterator[list[Worker]]:
    """Starts a worker for each spec, which has a `name`, and ends all workers after the block."""
    with contextlib.ExitStack() as stack:
        workers = []
        for spec in specs:
            workers.append(Worker(spec.name, serve, spec))
            stack.callback(workers[-1].close)
        yield workers


def ask_all(workers: Sequence[Worker], method: str, *arguments: Any) -> list[Any]:
    """Runs a method in all workers at once; gives their answers in order."""
    for worker in workers:
        worker.send(method, *arguments)
    return [worker.receive() for worker in workers]


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


def _serve(connection: Connection, name: str, serve: Callable[[Any], object], spec: Any) -> None:
    # Ctrl-C reaches the whole group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format=f"{name}: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.pop("MASTER_PORT", None)  # a run of its own, beside the other rows' and the parent's
    limit_threads(1)
    served = serve(spec)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("value", getattr(served, method)(*arguments))
        except MiniMindError as error:
            answer = ("user_error", error)
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)


def reset_peak_resident(process: int | None = None) -> None:
    """Makes Linux forget the peak so far (proc(5), clear_refs) of a process, by default this one.
    Where Linux refuses, the peak stays that since the start."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process or 'self'}/clear_refs").write_text("5")


def peak_resident(process: int | None = None) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{process or 'self'}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return None
