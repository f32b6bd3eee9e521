"""Lets rehearsals choose their own precision."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_the_device_has_it(own_precision: None) -> None:
    """Lets a GPU which is not there compute in its own precision."""
