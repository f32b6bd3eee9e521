"""Keeps Python's garbage collector out of training steps.

The collector stops its process whenever enough objects were made, each rank at a different moment,
and the other ranks wait for that one at their next exchange. Cyclic garbage of a step can wait.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

_STEPS, _SECONDS = 50, 10.0


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Collects nothing inside the block but on request; restores the collector afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Collections:
    """Collects between steps: on all ranks after the same ones, and more often where steps are so
    slow that it does not matter when."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def after(self, step: int) -> None:
        """Collects if it is time; comes after each step."""
        if step % _STEPS == 0 or time.monotonic() - self._last > _SECONDS:
            gc.collect()
            self._last = time.monotonic()
