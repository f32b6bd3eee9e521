"""Tells the ranks of a run that each is alive, and ends the run where one is lost.

A thread of each rank writes a sign of life into the ranks' store and reads those of the others;
another thread judges them (minimind.runtime.rank_watch), also while the store does not answer.
Training itself waits for neither: where a rank is lost, the main thread of the others waits in a
collective, and the judging thread ends the process.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from minimind.errors import LostRankError
from minimind.runtime.machine import boot_id
from minimind.runtime.progress import Progress
from minimind.runtime.rank_watch import RankWatch, Sign
from minimind.runtime.ranks import Ranks

logger = logging.getLogger("minimind")

_BEAT_S = 2.0
_HELD_UP = 5
"""A judging thread that wakes this many beats late was held up itself, and does not blame the
others for their silence."""
_LEARNS_S = 10.0
"""How long a rank whose collective has failed waits to learn which rank is lost."""
_HEARD_BEATS = 2
"""For how many beats, at most, a failed rank waits so that the others can read its error: the store
may end with its process."""
_runs = itertools.count()
"""Numbers the runs of this process; a run has the same number on all ranks."""


class Heartbeat:
    """Watches the ranks of a run inside a `with` block; with one rank it does nothing.

    Where a rank is lost, it logs the error and ends the process with status 1. Where a collective
    of the main thread fails first, the block raises a LostRankError that names the rank.
    """

    def __init__(
        self, ranks: Ranks, limit_s: float, *, end: Callable[[int], NoReturn] = os._exit
    ) -> None:
        self.advice = "Start the run again"
        """What the user can do where a rank is lost; the end of the message."""
        self._ranks, self._end = ranks, end
        self._beat_s = min(_BEAT_S, limit_s / 5)
        server = "the store of the ranks, on the machine of rank 0,"
        self._watch = RankWatch(ranks.rank, limit_s, server)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ended: str | None = None
        self._lost: str | None = None
        self._beats = self._moves = 0
        self._was: object = None
        self._prefix = f"heartbeat/{next(_runs)}"
        self._main = threading.get_ident()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Heartbeat:
        if self._ranks.world_size > 1:
            # A connection of its own: that of the process group may wait for a key.
            self._store = PrefixStore(self._prefix, _default_store().clone())  # type: ignore[attr-defined]
            self._store.set_timeout(datetime.timedelta(days=1))  # the judge has the limits
            for work in (self._tell, self._judge):
                thread = threading.Thread(
                    target=work, name=f"heartbeat{work.__name__}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        lost = self._explain(error)
        self._ended = "" if error is None else f"{type(error).__name__}: {error}".split("\n")[0]
        self._stopped.set()
        for thread in self._threads:
            thread.join(_HEARD_BEATS * self._beat_s + 1)
        if lost:
            raise lost from None

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside the block, ends the run also where all ranks stand still. Outside it, a rank may
        wait for another one's work without a limit."""
        with self._lock:
            self._watch.begin(time.monotonic())
        try:
            yield
        except Exception as error:
            if lost := self._explain(error):
                raise lost from None
            raise
        finally:
            with self._lock:
                self._watch.end()

    def fail(self) -> None:
        """Marks this rank as about to end with an error. While it closes its metrics and
        checkpoints, other ranks that have ended do not make it end at once."""
        with self._lock:
            self._watch.fails = True

    def _explain(self, error: BaseException | None) -> LostRankError | None:
        """Gives the error that names the lost rank, for an exception of a collective; None for any
        other."""
        if not self._threads or not _is_of_connection(error):
            return None
        lost, until = None, time.monotonic() + _LEARNS_S
        with _without_signals():
            while lost is None and time.monotonic() < until:
                time.sleep(0.1)
                with self._lock:
                    lost = self._watch.find_gone(time.monotonic(), at_once=True)
            what = lost or f"the connection to another rank is lost: {error}"
            return LostRankError(self._report(what))

    def _report(self, what: str) -> str:
        """Gives the text of the error, and logs it at once, since a launcher is about to end this
        process."""
        is_first, self._lost = self._lost is None, what.splitlines()[0]
        text = f"{self._lost}. {self.advice}"
        if is_first and self._watch.reports:
            logger.error("error: %s", text)
        return text

    def _tell(self) -> None:
        keys = [str(rank) for rank in range(self._ranks.world_size)]
        try:
            while True:
                ended = self._stopped.is_set()
                self._store.set(str(self._ranks.rank), self._sign().to_json())
                if ended:
                    self._wait_for_others(keys)
                    return
                if self._store.check(keys):  # every rank has written its first sign of life
                    texts = self._store.multi_get(keys)
                    signs = {rank: Sign(**json.loads(text)) for rank, text in enumerate(texts)}
                    with self._lock:
                        self._watch.see(signs, time.monotonic())
                self._stopped.wait(self._beat_s)
        except dist.DistError as error:  # the judging thread notices that the store does not answer
            logger.debug("heartbeat: %s", error)

    def _wait_for_others(self, keys: list[str]) -> None:
        """After an error of this rank, waits until every other rank has ended, or has had time to
        read this rank's error in the store."""
        until = time.monotonic() + (_HEARD_BEATS * self._beat_s if self._ended else 0.0)
        while time.monotonic() < until and self._store.check(keys):
            if all(json.loads(text)["ended"] is not None for text in self._store.multi_get(keys)):
                return
            time.sleep(0.1)

    def _sign(self) -> Sign:
        frame = sys._current_frames().get(self._main or 0)
        collectives = _count_collectives()
        place, now = _place(frame), (_position(frame), collectives, Progress.marks)
        del frame  # it holds the locals of the main thread
        self._beats += 1
        self._moves += now != self._was
        self._was = now
        return Sign(
            beat=self._beats,
            moves=self._moves,
            collectives=collectives,
            place=place,
            host=socket.gethostname(),
            machine=boot_id(),
            pid=os.getpid(),
            local_rank=self._ranks.local_rank,
            ended=self._ended,
            lost=self._lost,
        )

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._beat_s):
            now = time.monotonic()
            with self._lock:
                if now - before > _HELD_UP * self._beat_s:
                    self._watch.excuse(now)
                lost = self._watch.judge(now)
            before = now
            if lost:
                self._stop_process(lost)

    def _stop_process(self, what: str) -> NoReturn:
        self._report(what)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # The others can read it before the end of this process breaks their collective.
        self._ended = what
        self._stopped.set()
        self._threads[0].join(_HEARD_BEATS * self._beat_s + 1)
        self._end(1)


def _default_store() -> Store:
    return dist.distributed_c10d._get_default_store()


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Ignores SIGTERM and SIGINT in the block: a launcher that has noticed a dead rank sends one to
    the others."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # Python lets the main thread alone set handlers
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_of_connection(error: BaseException | None) -> bool:
    """Tells whether an error, or its cause, comes from a connection between ranks."""
    text = str(error).lower()
    if error is not None and error.__cause__ is not None:  # a checkpoint's error has a cause
        return _is_of_connection(error.__cause__)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    )


def _count_collectives() -> int:
    """Counts the collectives that this process has entered, in all groups that count them."""
    found = 0
    for group in list(dist.distributed_c10d._world.pg_map):
        with contextlib.suppress(RuntimeError):  # PyTorch counts those of Gloo, NCCL and UCC
            found += group._get_sequence_number_for_group()  # type: ignore[attr-defined]
    return found


def _position(frame: FrameType | None) -> tuple[object, ...]:
    """Gives the position of a thread in the code: the instruction of each frame."""
    found: list[object] = []
    while frame is not None:
        found += [frame.f_code, frame.f_lasti]
        frame = frame.f_back
    return tuple(found)


def _place(frame: FrameType | None) -> str:
    """Names the innermost function of this project that a thread is in."""
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("minimind"):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    name = str(frame.f_globals["__name__"]).replace(".", "/")
    return f"{name}.py:{frame.f_lineno} ({frame.f_code.co_name})"
