"""Calls Python functions that a user names, in worker processes, each call with a time limit."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from minimind.errors import ConfigError, TrainingError
from minimind.runtime.function_worker import READY, FailureKind
from minimind.runtime.named_function import NamedFunction
from minimind.runtime.worker_process import WorkerProcess

_START_S = 120.0
_MOST_FAILED_STARTS = 3
_MOST_AT_ONCE = 16
"""The most calls that a worker gets at once."""
_LOOK_EVERY_S = 1.0
"""The seconds between two looks for workers that have ended without closing their connection."""
_LEAST_FIRST_S = 2.0


@dataclass(frozen=True, slots=True)
class Call:
    """Names one of the pool's functions and the argument to call it with."""

    function: str
    """The function, as it was written for the pool."""
    argument: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """Says why a call has no result."""

    kind: FailureKind
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Holds a call's value, or the failure because of which it has none."""

    value: Any = None
    failure: Failure | None = None


@dataclass(slots=True)
class _Task:
    number: int
    function: NamedFunction
    argument: bytes | None
    """None asks only whether the function can be called."""


class FunctionPool:
    """Owns the worker processes that call functions named by a user.

    A call that raises, takes too long or ends its process gives a Failure and affects no other.
    Workers start with the first call and end with `close`, the pool or this process; they are
    killed, so `atexit` functions do not run. What functions print goes to stderr.
    """

    def __init__(
        self,
        functions: Sequence[str],
        *,
        num_workers: int,
        timeout_s: float,
        shipped: Mapping[str, str],
        is_unpacked: bool = False,
        first_call_s: float = 120.0,
    ) -> None:
        """Prepares to call `functions`, written as NamedFunction.parse reads them with the short
        names `shipped`. A function gets its call's argument, or with `is_unpacked` the items of
        that mapping as keywords. `timeout_s` limits a call. A function's first call in a worker
        (import, loading) may take `first_call_s`; once one has ended, later first calls may take
        four times as long as it did, plus `timeout_s`. Raises ConfigError."""
        if num_workers < 1:
            raise ConfigError(f"{num_workers} worker processes are too few: at least 1 is needed")
        if not 0 < timeout_s < 1e6:
            raise ConfigError(f"a time limit of {timeout_s} s: it must be above 0 and below 1e6")
        self._functions = {text: NamedFunction.parse(text, shipped) for text in functions}
        self._num_workers, self._is_unpacked = num_workers, is_unpacked
        self._timeout_s, self._first_call_s = timeout_s, max(first_call_s, timeout_s)
        self._most_s = 60 + 2 * math.ceil(self._first_call_s)
        self._first_took_s: dict[str, float] = {}
        """The longest time of a first call, by function, among those that answered or were given
        up."""
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end_workers, self._workers, os.getpid())

    def __enter__(self) -> FunctionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def short_name(self, function: str) -> str:
        """Gives a function's bare name, without module and arguments."""
        return self._functions[function].short_name

    def check(self) -> None:
        """Imports every function in a worker. Raises ConfigError for the first that fails."""
        tasks = [_Task(number, one, None) for number, one in enumerate(self._functions.values())]
        for number, outcome in self._run(tasks):
            if outcome.failure is not None:
                raise ConfigError(f"{tasks[number].function.text}: {outcome.failure.text}")

    def call(self, calls: Sequence[Call]) -> list[Outcome]:
        """Gives the outcome of each call, in order."""
        outcomes = dict(self.stream(calls))
        return [outcomes[number] for number in range(len(calls))]

    def stream(self, calls: Sequence[Call]) -> Generator[tuple[int, Outcome], None, None]:
        """Yields (index of the call, outcome) as soon as each is known. Closing the iterator
        abandons the other calls. The pool runs one stream at a time."""
        tasks = []
        last, pickled = object(), b""
        for number, call in enumerate(calls):
            try:
                if call.argument is not last:
                    pickled = pickle.dumps(call.argument, pickle.HIGHEST_PROTOCOL)
                    last = call.argument
            except Exception as error:
                text = f"what it is called with cannot be sent to a worker process: {error}"
                yield number, Outcome(failure=Failure("unpicklable", text))
            else:
                tasks.append(_Task(number, self._functions[call.function], pickled))
        yield from self._run(tasks)

    def close(self) -> None:
        """Ends the workers. A closed pool cannot be used again."""
        self._end()

    def _run(self, tasks: list[_Task]) -> Iterator[tuple[int, Outcome]]:
        with self._lock:
            if not self._end.alive:
                raise RuntimeError("this pool of functions is closed")
            queue = deque(tasks)
            try:
                while queue or any(worker.tasks for worker in self._workers):
                    self._hand_out(queue)
                    yield from self._collect(queue)
            finally:
                # If the reader stops early, workers still hold answers that the next call must not
                # get.
                for worker in [worker for worker in self._workers if worker.tasks]:
                    self._drop(worker)

    def _hand_out(self, queue: deque[_Task]) -> None:
        """Gives tasks to idle workers, and starts as many workers as the remaining work needs."""
        for worker in list(self._workers):
            if not worker.is_ready or worker.tasks:
                continue
            if worker.process.connection.poll():
                self._drop(worker)  # It has ended since its last call, and no call is to blame.
            elif queue:
                share = -(-len(queue) // (4 * self._num_workers))
                tasks = [queue.popleft() for _ in range(min(share, _MOST_AT_ONCE))]
                worker.give(tasks)
        busy = sum(bool(worker.tasks) for worker in self._workers)
        wanted = min(self._num_workers, busy + len(queue))
        while len(self._workers) < wanted:
            process = WorkerProcess(is_unpacked=self._is_unpacked, most_s=self._most_s)
            self._workers.append(_Worker(process))

    def _collect(self, queue: deque[_Task]) -> Iterator[tuple[int, Outcome]]:
        """Waits until a starting or busy worker answers or ends, and yields the outcomes."""
        active = [worker for worker in self._workers if worker.tasks or not worker.is_ready]
        wait_s = min(map(self._deadline, active)) - time.monotonic()
        pipes = [worker.process.connection for worker in active]
        readable = connection.wait(pipes, min(max(wait_s, 0.0), _LOOK_EVERY_S))
        for worker in active:
            pipe = worker.process.connection
            is_late = time.monotonic() > self._deadline(worker)
            is_lost = is_late or (not readable and worker.process.has_ended())
            # A result that arrived while this process was busy counts as in time.
            if pipe in readable or (is_lost and pipe.poll()):
                try:
                    message = pipe.recv_bytes()
                except (EOFError, OSError):
                    yield from self._end_of(worker, queue)
                    continue
                if message != READY:
                    yield self._take(worker, message)
                else:
                    self._failed_starts, worker.is_ready = 0, True
            elif is_lost:
                yield from self._end_of(worker, queue, is_late=is_late)

    def _take(self, worker: _Worker, message: bytes) -> tuple[int, Outcome]:
        task = worker.tasks.popleft()
        now = time.monotonic()
        if task.argument is not None and task.function.text not in worker.called:
            worker.called.add(task.function.text)
            self._note_first(task.function.text, now - worker.began)
        worker.began = now
        try:
            kind, value = pickle.loads(message)
        except Exception as error:
            text = f"what it returned cannot be read here: {error!r}"
            return task.number, Outcome(failure=Failure("unpicklable", text))
        outcome = Outcome(value) if kind is None else Outcome(failure=Failure(kind, value))
        return task.number, outcome

    def _end_of(
        self, worker: _Worker, queue: deque[_Task], *, is_late: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        """Ends a worker that is late or has died; the next one gets its unstarted tasks."""
        if not worker.is_ready:
            self._failed_starts += 1
            how = self._drop(worker)
            if self._failed_starts >= _MOST_FAILED_STARTS:
                how = f"it was not ready after {_START_S:g} s" if is_late else how
                raise TrainingError(f"no worker process for functions could be started: {how}")
            return
        task = worker.tasks.popleft()
        limit_s = self._limit(worker, task)
        is_first = task.function.text not in worker.called
        queue.extendleft(reversed(worker.tasks))
        worker.tasks.clear()
        how = self._drop(worker)
        if not is_late:
            yield task.number, Outcome(failure=Failure("died", how))
            return
        if is_first:
            self._note_first(task.function.text, 0.0)
        what = "it" if limit_s == self._timeout_s else "its first call in a worker process"
        what = "importing it" if task.argument is None else what
        text = f"{what} took longer than {limit_s:g} s"
        yield task.number, Outcome(failure=Failure("slow", text))

    def _deadline(self, worker: _Worker) -> float:
        limit_s = self._limit(worker, worker.tasks[0]) if worker.is_ready else _START_S
        return worker.began + limit_s

    def _limit(self, worker: _Worker, task: _Task) -> float:
        text = task.function.text
        if task.argument is not None and text in worker.called:
            return self._timeout_s
        if text not in self._first_took_s:
            return self._first_call_s
        return self._timeout_s + max(_LEAST_FIRST_S, 4 * self._first_took_s[text])

    def _note_first(self, text: str, took_s: float) -> None:
        self._first_took_s[text] = max(took_s, self._first_took_s.get(text, 0.0))

    def _drop(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        return worker.process.end()


class _Worker:
    """Holds a worker process and its tasks."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.is_ready = False
        self.tasks: deque[_Task] = deque()
        """The tasks without an answer yet; the worker is busy with the first."""
        self.called: set[str] = set()
        """The functions that the worker has called before."""
        self.began = time.monotonic()
        """When the worker was started, or began its current task."""

    def give(self, tasks: list[_Task]) -> None:
        """Sends tasks to an idle worker. It reads all of them before it answers, so that the two
        sides never wait for each other with full pipes."""
        self.tasks.extend(tasks)
        message = [(task.function, task.argument) for task in tasks]
        self.began = time.monotonic()
        # If the worker has just ended, reading from it will show that.
        with contextlib.suppress(OSError):
            self.process.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _end_workers(workers: list[_Worker], owner: int) -> None:
    # A fork of this process has the same list, but these workers are not its children.
    if os.getpid() == owner:
        for worker in workers:
            worker.process.end()
        workers.clear()
