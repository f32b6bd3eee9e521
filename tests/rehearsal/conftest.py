"""Lets rehearsals choose their own precision."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the tests' precision, so that a GPU which is not there computes in its own."""
    monkeypatch.delenv("MINIMIND_PRECISION", raising=False)
