"""Keeps Python's garbage collector out of training steps.

The collector stops a process after a number of allocations, so at a different moment on each rank,
and the other ranks wait for it in their next exchange. A step's cyclic garbage can wait.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

_STEPS, _SECONDS = 50, 10.0


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Turns the collector off inside the block, and restores it afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Collections:
    """Collects garbage between steps: all ranks after the same steps, and in addition whenever
    steps are so slow that the moment does not matter."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def after(self, step: int) -> None:
        """Collects if it is time. Called after each step."""
        if step % _STEPS == 0 or time.monotonic() - self._last > _SECONDS:
            gc.collect()
            self._last = time.monotonic()
