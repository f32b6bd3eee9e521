"""Ctrl-C and SIGTERM as a request to save and stop."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class Interrupts:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # The launcher repeats Ctrl-C as SIGTERM: only the same signal again means impatience.
        logger.info("%s: saving and stopping", signal.Signals(number).name)
        self.requested = True
        signal.signal(number, self._previous[number])
