"""/v1/completions: prompts continued as documents."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import Delta
from minimind.serving.call_record import CallRecord, total_usage
from minimind.serving.engine_thread import Answer
from minimind.serving.logprob_format import text_logprobs
from minimind.serving.request_schemas import CompletionRequest
from minimind.serving.response_schemas import StopReason, TextChoice, TextCompletion
from minimind.serving.served_model import ServedModel


class TextWriter:
    """Writes the answer of one call; its choices are numbered prompt by prompt."""

    def __init__(self, model: ServedModel, body: CompletionRequest, record: CallRecord) -> None:
        self._model, self._body, self._record = model, body, record
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._last: dict[int, Delta] = {}

    async def whole(self, answer: Answer) -> TextCompletion:
        texts: dict[int, list[str]] = {index: [] for index in answer.open_choices.values()}
        logprobs: dict[int, list[TokenLogprob]] = {index: [] for index in texts}
        async for index, delta in answer.deltas():
            self._note(index, delta)
            texts[index].append(delta.text)
            logprobs[index] += delta.logprobs
        self._finish()
        choices = [
            TextChoice(index=index, text="".join(parts), finish_reason=_reason(self._last[index]))
            for index, parts in texts.items()
        ]
        if self._body.logprobs is not None:
            for choice in choices:
                choice.logprobs = text_logprobs(self._model.tokenizer, logprobs[choice.index])
        completion = self._envelope(choices)
        completion.usage = total_usage(self._last, self._body.num_choices)
        return completion

    async def chunks(self, answer: Answer) -> AsyncIterator[TextCompletion]:
        offsets = dict.fromkeys(answer.open_choices.values(), 0)
        async for index, delta in answer.deltas():
            self._note(index, delta)
            choice = TextChoice(index=index, text=delta.text, finish_reason=_reason(delta))
            if delta.logprobs:
                found = text_logprobs(self._model.tokenizer, delta.logprobs, offsets[index])
                offsets[index] = found.text_offset[-1] + len(found.tokens[-1])
                choice.logprobs = found
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                yield self._envelope([choice])
        self._finish()
        if self._body.include_usage:
            chunk = self._envelope([])
            chunk.usage = total_usage(self._last, self._body.num_choices)
            yield chunk

    def _note(self, index: int, delta: Delta) -> None:
        self._last[index] = delta
        self._record.note(delta)

    def _finish(self) -> None:
        self._record.usage = total_usage(self._last, self._body.num_choices)
        reasons = [_reason(self._last[index]) for index in sorted(self._last)]
        self._record.finish_reasons = [str(reason) for reason in reasons]

    def _envelope(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model.name,
            choices=choices,
        )


def _reason(delta: Delta) -> StopReason | None:
    if delta.finish_reason is None:
        return None
    return "length" if delta.finish_reason == "length" else "stop"
