"""Defines what chat and text completions share: turning the engine's deltas into OpenAI's
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
    """Writes the answer to one call, whole or in chunks, and fills in the call's record."""

    def __init__(
        self,
        prefix: str,
        model: ServedModel,
        body: GenerationRequestFields,
        record: CallRecord,
    ) -> None:
        """Makes the answer's id, which begins with `prefix`, as each kind of OpenAI's objects
        does."""
        self._tokenizer, self._num_choices, self._record = model.tokenizer, body.num_choices, record
        self._head: dict[str, Any] = {
            "id": f"{prefix}{uuid.uuid4().hex}",
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
        """Sums the tokens of all choices from their last deltas. A prompt that several choices
        share counts once."""
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
        """Gives the usage as a field of a chunk, if the client wants it in every chunk."""
        return {"usage": self._usage} if self._counts_all_along else {}

    async def _deltas(self, answer: Answer) -> AsyncIterator[tuple[int, Delta]]:
        """Yields (index of the choice, delta); after the last one, the call's record is
        complete."""
        async for index, delta in answer.deltas():
            self._last[index] = delta
            self._record.note(delta)
            yield index, delta
        self._record.usage = self._usage
        self._record.finish_reasons = [str(reason) for reason in self._finish_reasons]


def stop_reason(delta: Delta) -> StopReason | None:
    """Gives OpenAI's word for a finish reason; None while the generation goes on."""
    if delta.finish_reason is None:
        return None
    return "length" if delta.finish_reason == "length" else "stop"
