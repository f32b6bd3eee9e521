"""What is known of one API call when it ends: for the log and the metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from minimind.inference.request import Delta
from minimind.serving.response_schemas import Usage

_ODD = re.compile(r"[^\w.\[\]-]", re.ASCII)
_LONGEST_NAME, _MOST_NAMES = 80, 20


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
    ignored_fields: list[str] = field(default_factory=list)
    """Names of what the client sent that nothing here knows."""
    notice: str | None = None
    """What the client ought to know, though it was answered."""

    def ignore(self, names: Iterable[str]) -> None:
        """Names come from the client and go into a header."""
        self.ignored_fields += [_ODD.sub("?", name)[:_LONGEST_NAME] for name in names]
        del self.ignored_fields[_MOST_NAMES:]

    def note(self, delta: Delta) -> None:
        if self.first_token_s is None and delta.ids:
            self.first_token_s = time.perf_counter() - self.started
