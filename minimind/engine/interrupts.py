"""Turns Ctrl-C and SIGTERM into a request to save and stop."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class Interrupts:
    """Sets `requested` at the first SIGINT or SIGTERM inside the block; the same signal a second
    time acts at once. Outside the main thread it changes nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.requested = False
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # The launcher repeats Ctrl-C as SIGTERM, so only a second signal of the same kind acts at
        # once.
        logger.info("%s: saving and stopping", signal.Signals(number).name)
        self.requested = True
        signal.signal(number, self._previous[number])
