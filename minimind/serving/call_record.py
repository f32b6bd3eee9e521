"""What is known of one API call when it ends: for the log and the metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from minimind.inference.request import Delta
from minimind.serving.response_schemas import PromptDetails, Usage


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


def total_usage(last: Mapping[int, Delta], num_choices: int) -> Usage:
    """From each choice's last delta. A prompt that several choices share counts once."""
    prompts = [delta for index, delta in last.items() if index % num_choices == 0]
    prompt_tokens = sum(delta.prompt_tokens for delta in prompts)
    completion_tokens = sum(delta.completion_tokens for delta in last.values())
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(delta.cached_tokens for delta in prompts)
        ),
    )
