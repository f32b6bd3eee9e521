"""Python's garbage collector kept out of training steps.

It stops its process whenever enough objects were made, each rank at a moment of its own, and the
others wait for that one at their next exchange. What a step leaves in cycles can wait for it.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator

_STEPS, _SECONDS = 50, 10.0


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Within it nothing is collected but on request; after it, as before it."""
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
        """Comes after each step."""
        if step % _STEPS == 0 or time.monotonic() - self._last > _SECONDS:
            gc.collect()
            self._last = time.monotonic()
