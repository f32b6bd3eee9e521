"""An engine in this process."""

from __future__ import annotations

import pytest
from optimizer_steps import ALONE

from minimind.engine.deepspeed_engine import start_ranks
from minimind.runtime.devices import find_device


@pytest.fixture
def one_rank(no_launcher: None) -> None:
    start_ranks(ALONE, find_device())


@pytest.fixture
def cpu_with_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks before it trains in fp16, which a CPU can: slowly."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
