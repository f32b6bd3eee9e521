"""What is known of one API call when it ends: for the log and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minimind.inference.request import Delta
from minimind.serving.response_schemas import Usage


@dataclass(slots=True)
class CallRecord:
    """Filled as the call goes on."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    model: str | None = None
    stream: bool = False
    first_token_s: float | None = None
    usage: Usage | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompt: str | None = None
    """Only where the server is told to log it."""

    def note(self, delta: Delta) -> None:
        if self.first_token_s is None and delta.ids:
            self.first_token_s = time.perf_counter() - self.started
