"""Records what happens in an API call, for the log and the metrics."""

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
    """Collects the data of one call while it is running."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    model: str | None = None
    stream: bool = False
    first_token_s: float | None = None
    usage: Usage | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompt: str | None = None
    """The prompt, if the server is set to log prompts."""
    ignored_fields: list[str] = field(default_factory=list)
    """The names of fields that the client sent and the server does not know."""
    notice: str | None = None
    """A hint for the client of a successful call, sent as a header."""

    def ignore(self, names: Iterable[str]) -> None:
        """Adds names of unknown fields. They come from the client, so they are made safe for a
        header."""
        self.ignored_fields += [_ODD.sub("?", name)[:_LONGEST_NAME] for name in names]
        del self.ignored_fields[_MOST_NAMES:]

    def note(self, delta: Delta) -> None:
        if self.first_token_s is None and delta.ids:
            self.first_token_s = time.perf_counter() - self.started
