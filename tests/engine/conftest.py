"""Provides an engine in this process and a store of checkpoints, and keeps tests of the loop fast
and their signal handlers checked."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from optimizer_steps import ALONE
from saved_checkpoints import engine_of_a_model

from minimind.engine import loop as loop_module
from minimind.engine.checkpoint_store import CheckpointStore
from minimind.engine.process_group import start_ranks
from minimind.runtime.devices import find_device
from minimind.runtime.memory import PeakMemory


class EarlierHandlerError(Exception):
    """Is raised by the signal handlers that were set before the loop ran."""


@pytest.fixture
def one_rank(no_launcher: None) -> None:
    start_ranks(ALONE, find_device())


@pytest.fixture
def engine() -> FakeEngine:
    """Gives an engine whose model is small and whose shards are a few bytes."""
    return engine_of_a_model()


@pytest.fixture
def store(engine: FakeEngine, tmp_path: Path) -> CheckpointStore:
    """Gives the store that writes into `tmp_path` itself."""
    return CheckpointStore(tmp_path, engine.typed, keep=2)


@pytest.fixture
def cpu_with_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes DeepSpeed train in fp16 on a CPU, which can do it slowly; DeepSpeed asks first."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)


@pytest.fixture
def signal_handlers() -> Iterator[type[Exception]]:
    """Sets signal handlers, and checks after the test that they are set again, however its loops
    ended. Gives the error that they raise."""

    def handler(*_: object) -> None:
        raise EarlierHandlerError

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    yield EarlierHandlerError
    after = [signal.signal(*pair) for pair in zip(numbers, before, strict=True)]
    assert after == [handler, handler]


@pytest.fixture
def without_the_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the memory measurement and the scan of all objects, which take longer than all these
    tests."""
    monkeypatch.setattr(PeakMemory, "measured", lambda memory: contextlib.nullcontext())
    monkeypatch.setattr(loop_module, "freeze_objects", lambda: None)
