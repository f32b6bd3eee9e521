"""An engine in this process, and what keeps tests of the loop alone fast and their signal handlers
checked."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest
from fake_engine import EarlierHandlerError
from optimizer_steps import ALONE

from minimind.engine import loop as loop_module
from minimind.engine.deepspeed_engine import start_ranks
from minimind.runtime.devices import find_device
from minimind.runtime.memory import PeakMemory


@pytest.fixture
def one_rank(no_launcher: None) -> None:
    start_ranks(ALONE, find_device())


@pytest.fixture
def cpu_with_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks before it trains in fp16, which a CPU can: slowly."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Sets handlers, which must be there again after each test, however its loops ended."""

    def handler(*_: object) -> None:
        raise EarlierHandlerError

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    yield
    after = [signal.signal(*pair) for pair in zip(numbers, before, strict=True)]
    assert after == [handler, handler]


@pytest.fixture
def without_the_slow_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all objects of the test process takes longer than all these tests."""
    monkeypatch.setattr(PeakMemory, "measured", lambda memory: contextlib.nullcontext())
    monkeypatch.setattr(loop_module, "freeze_objects", lambda: None)
