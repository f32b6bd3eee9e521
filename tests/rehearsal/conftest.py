"""Rehearsals choose for themselves."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there computes in its own precision, whatever this machine's tests do."""
    monkeypatch.delenv("MINIMIND_PRECISION", raising=False)
