"""Holds the part that both kinds of completion share: it turns an engine's deltas into OpenAI's
objects."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel

from minimind.inference.request import Delta
from minimind.serving.call_record import CallRecord
from minimind.serving.engine_thread import Answer
from minimind.serving.request_schemas import GenerationRequestFields
from minimind.serving.response_schemas import PromptDetails, StopReason, Usage
from minimind.serving.served_model import ServedModel


class CompletionWriter(ABC):
    """Writes the answer of one call, whole or in chunks, and completes the call's record."""

    def __init__(
        self,
        prefix: str,
        model: ServedModel,
        body: GenerationRequestFields,
        record: CallRecord,
    ) -> None:
        """Makes the id, which begins with `prefix`: OpenAI tells its objects apart by it."""
        self._tokenizer, self._num_choices, self._record = model.tokenizer, body.num_choices, record
        self._head: dict[str, Any] = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
        }
        self._last: dict[int, Delta] = {}
        self._counts_all_along = body.continuous_usage

    @abstractmethod
    async def whole(self, answer: Answer) -> BaseModel: ...

    @abstractmethod
    def chunks(self, answer: Answer) -> AsyncIterator[BaseModel]: ...

    @property
    @abstractmethod
    def _finish_reasons(self) -> list[StopReason | None]:
        """Gives the finish reasons of the choices, in order."""

    @property
    def _usage(self) -> Usage:
        """Adds up the tokens from each choice's last delta. A prompt that several choices share
        counts once."""
        prompts = [d for index, d in self._last.items() if index % self._num_choices == 0]
        prompt_tokens = sum(delta.prompt_tokens for delta in prompts)
        completion_tokens = sum(delta.completion_tokens for delta in self._last.values())
        cached_tokens = sum(delta.cached_tokens for delta in prompts)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptDetails(cached_tokens=cached_tokens),
        )

    @property
    def _usage_so_far(self) -> dict[str, Usage]:
        """Gives the usage for a chunk, where the client wants it in each one."""
        return {"usage": self._usage} if self._counts_all_along else {}

    async def _deltas(self, answer: Answer) -> AsyncIterator[tuple[int, Delta]]:
        """Yields (choice, delta); with the last one the record is complete."""
        async for index, delta in answer.deltas():
            self._last[index] = delta
            self._record.note(delta)
            yield index, delta
        self._record.usage = self._usage
        self._record.finish_reasons = [str(reason) for reason in self._finish_reasons]


def stop_reason(delta: Delta) -> StopReason | None:
    """Names the reason in OpenAI's words; None while there is more to come."""
    if delta.finish_reason is None:
        return None
    return "length" if delta.finish_reason == "length" else "stop"
