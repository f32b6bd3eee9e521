"""Runs each monitor in a thread behind a queue, so that a run neither waits for a monitor nor fails
with it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from minimind.monitors.monitor import Figures, Monitor, MonitoredRun, Outcome

logger = logging.getLogger(__name__)

_MOST_WAITING = 10_000
"""The most steps by which a monitor may lag."""
_SAID_AFTER_S = 10.0
_PATIENCE_S = 330.0
"""The seconds that `close` waits for a monitor; by then the whole run is on disk."""


class BackgroundMonitor:
    """Opens, feeds and closes one monitor in its own thread, since some monitors take over the
    signal handlers of the thread that opens them. A failure after opening is logged once and never
    ends the run; each later step is tried all the same, since a full disk may have room again."""

    def __init__(self, name: str, open_monitor: Callable[[], Monitor], run: MonitoredRun) -> None:
        """Opens the monitor. Raises whatever opening it raises."""
        self._name = name
        self._has_failed = False
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        opened: Future[Monitor] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(open_monitor, opened), name=f"monitor {name}", daemon=True
        )
        self._thread.start()
        wait([opened], _SAID_AFTER_S)
        if not opened.done():
            logger.info("%s is slow to start; the run waits for it or for its error", name)
        self._monitor = monitor = opened.result()
        self._put(lambda: self._catch_up(run))
        if monitor.holds > run.step:
            logger.info(
                "%s has steps up to %d of this run already, which stay as they are there",
                *(name, monitor.holds),
            )

    def write(self, step: int, figures: Figures) -> None:
        if step > self._monitor.holds:
            self._put(lambda: self._monitor.write(step, figures))

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        if step > self._monitor.holds:
            self._put(lambda: self._monitor.write_texts(step, texts))

    def close(self, outcome: Outcome) -> None:
        """Waits, up to a limit, for the figures that are not written yet."""
        self._put(lambda: self._monitor.close(outcome))
        self._put(None)
        self._thread.join(_SAID_AFTER_S)
        if self._thread.is_alive():
            logger.info("the run is on disk; %s is still taking its figures", self._name)
            self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self._warn("it did not end; what it has not taken is in metrics.csv")

    def _catch_up(self, run: MonitoredRun) -> None:
        for step, figures in run.earlier:
            if step > self._monitor.holds:
                self._monitor.write(step, figures)

    def _put(self, work: Callable[[], None] | None) -> None:
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._warn(f"it lies {_MOST_WAITING} steps behind; steps are left out there")

    def _work(self, open_monitor: Callable[[], Monitor], opened: Future[Monitor]) -> None:
        try:
            opened.set_result(open_monitor())
        except BaseException as error:
            opened.set_exception(error)
            return
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except Exception as error:
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, problem: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning("%s fails, the run goes on: %s", self._name, problem)


class Monitors:
    """Holds all monitors of a run."""

    def __init__(self, monitors: Sequence[BackgroundMonitor] = ()) -> None:
        self._monitors = monitors

    def write(self, step: int, figures: Figures) -> None:
        for monitor in self._monitors:
            monitor.write(step, figures)

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        for monitor in self._monitors:
            monitor.write_texts(step, texts)

    def close(self, outcome: Outcome) -> None:
        """Ends the last one first: some stand between the console and those opened before them."""
        for monitor in reversed(self._monitors):
            monitor.close(outcome)
