"""A run neither waits for a monitor nor ends with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from minimind.errors import ConfigError
from minimind.monitors import background, start
from minimind.monitors.background import BackgroundMonitor, Monitors
from minimind.monitors.monitor import DONE, Figures, MonitoredRun, Outcome


class FakeMonitor:
    """Remembers what it was given; `before` runs before each step is taken."""

    def __init__(self, holds: int = 0, before: Callable[[int], None] = lambda step: None) -> None:
        self.holds = holds
        self.before = before
        self.steps: list[int] = []
        self.texts: list[int] = []
        self.outcome: Outcome | None = None

    def write(self, step: int, figures: Figures) -> None:
        self.before(step)
        self.steps.append(step)

    def write_texts(self, step: int, texts: Sequence[str]) -> None:
        self.texts.append(step)

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


@pytest.fixture
def run(tmp_path: Path) -> MonitoredRun:
    earlier = [(step, {"loss": 1.0}) for step in (1, 2, 3, 4)]
    return MonitoredRun(tmp_path, {}, resumed=True, step=4, reached=6, earlier=earlier)


def behind(monitor: FakeMonitor, run: MonitoredRun) -> BackgroundMonitor:
    return BackgroundMonitor("fake", lambda: monitor, run)


@pytest.mark.parametrize(("holds", "steps"), [(0, [1, 2, 3, 4, 5]), (2, [3, 4, 5]), (5, [])])
def test_it_gets_what_it_lacks_and_no_step_that_it_holds(
    run: MonitoredRun, holds: int, steps: list[int]
):
    monitor = FakeMonitor(holds)
    log = behind(monitor, run)
    log.write(5, {"loss": 1.0})
    log.write_texts(5, ["a"])
    log.close(DONE)
    assert monitor.steps == steps
    assert monitor.texts == steps[-1:]
    assert monitor.outcome == DONE


def test_one_that_hangs_holds_nothing_up(
    run: MonitoredRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(background, "_MOST_WAITING", 3)
    monkeypatch.setattr(background, "_SAID_AFTER_S", 0.01)
    monkeypatch.setattr(background, "_PATIENCE_S", 0.01)
    network = threading.Event()
    monitor = FakeMonitor(before=lambda step: network.wait() and None)
    log = behind(monitor, run)
    for step in range(5, 20):
        log.write(step, {"loss": 1.0})
    log.close(DONE)
    assert monitor.steps == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "fake fails, the run goes on: it lies 3 steps behind; steps are left out there"
    ]
    network.set()


def test_one_that_is_slow_to_open_is_told_of(run: MonitoredRun, monkeypatch: pytest.MonkeyPatch):
    """W&B looks for its server for 90 seconds."""
    monkeypatch.setattr(background, "_SAID_AFTER_S", 0.01)
    told = threading.Event()
    monkeypatch.setattr(background.logger, "info", lambda *_: told.set())

    def open_late() -> FakeMonitor:
        assert told.wait(30)
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        BackgroundMonitor("fake", open_late, run)


def test_one_that_fails_is_told_of_once_and_tried_again(
    run: MonitoredRun, caplog: pytest.LogCaptureFixture
):
    def fail(step: int) -> None:
        if step in (6, 7):
            raise OSError(28, "No space left on device")

    monitor = FakeMonitor(before=fail)
    log = behind(monitor, run)
    for step in (5, 6, 7, 8):
        log.write(step, {"loss": 1.0})
    log.close(DONE)
    assert monitor.steps == [1, 2, 3, 4, 5, 8]
    assert [record.getMessage() for record in caplog.records] == [
        "fake fails, the run goes on: OSError: [Errno 28] No space left on device"
    ]


def test_it_opens_writes_and_closes_in_one_thread_that_is_not_the_runs(run: MonitoredRun):
    """SwanLab takes the signals of the thread that opens it, and gives them back when it closes."""
    threads = []

    class Noting(FakeMonitor):
        def __init__(self) -> None:
            super().__init__(before=lambda step: threads.append(threading.current_thread()))
            threads.append(threading.current_thread())

        def close(self, outcome: Outcome) -> None:
            threads.append(threading.current_thread())

    BackgroundMonitor("fake", Noting, run).close(DONE)
    assert len(threads) == 6
    (thread,) = set(threads)
    assert thread is not threading.current_thread()


def test_the_last_opened_is_closed_first(run: MonitoredRun):
    """Those that stand before the console give it back as they took it."""
    closed: list[str] = []

    class Noting(FakeMonitor):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def close(self, outcome: Outcome) -> None:
            closed.append(self.name)

    Monitors([behind(Noting(name), run) for name in ("first", "second")]).close(DONE)
    assert closed == ["second", "first"]


def test_one_that_cannot_start_ends_the_others_and_says_what_does(
    run: MonitoredRun, monkeypatch: pytest.MonkeyPatch
):
    opened = FakeMonitor()

    def refuse(*_: object) -> FakeMonitor:
        raise RuntimeError("No API key configured")

    kinds = {"csv_monitor": start._Kind(lambda *_: opened)}
    kinds["wandb"] = start._KINDS["wandb"]._replace(open=refuse)
    monkeypatch.setattr(start, "_KINDS", kinds)
    on = {"enabled": True}
    with pytest.raises(ConfigError, match=r"No API key configured; .*WANDB_MODE=offline keeps"):
        start.start_monitors(run, {"csv_monitor": on, "wandb": on})
    assert opened.outcome is not None
    assert opened.outcome.status == 2
