"""/v1/completions: prompts continued as documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from minimind.inference.logprobs import TokenLogprob
from minimind.serving.call_record import CallRecord
from minimind.serving.completion_writer import CompletionWriter, stop_reason
from minimind.serving.engine_thread import Answer
from minimind.serving.logprob_format import text_logprobs
from minimind.serving.request_schemas import CompletionRequest
from minimind.serving.response_schemas import StopReason, TextChoice, TextCompletion
from minimind.serving.served_model import ServedModel


class TextWriter(CompletionWriter):
    """Choices are numbered prompt by prompt."""

    def __init__(self, model: ServedModel, body: CompletionRequest, record: CallRecord) -> None:
        super().__init__("cmpl", model, body, record)
        self._body = body

    async def whole(self, answer: Answer) -> TextCompletion:
        texts: dict[int, list[str]] = {index: [] for index in answer.open_choices.values()}
        logprobs: dict[int, list[TokenLogprob]] = {index: [] for index in texts}
        async for index, delta in self._deltas(answer):
            texts[index].append(delta.text)
            logprobs[index] += delta.logprobs
        choices = [
            TextChoice(index=index, text="".join(texts[index]), finish_reason=reason)
            for index, reason in enumerate(self._finish_reasons)
        ]
        if self._body.logprobs is not None:
            for choice in choices:
                choice.logprobs = text_logprobs(self._tokenizer, logprobs[choice.index])
        return self._envelope(choices, usage=self._usage)

    async def chunks(self, answer: Answer) -> AsyncIterator[TextCompletion]:
        offsets = dict.fromkeys(answer.open_choices.values(), 0)
        async for index, delta in self._deltas(answer):
            choice = TextChoice(index=index, text=delta.text, finish_reason=stop_reason(delta))
            if delta.logprobs:
                found = text_logprobs(self._tokenizer, delta.logprobs, offsets[index])
                offsets[index] = found.text_offset[-1] + len(found.tokens[-1])
                choice.logprobs = found
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                yield self._envelope([choice])
        if self._body.include_usage:
            yield self._envelope([], usage=self._usage)

    @property
    def _finish_reasons(self) -> list[StopReason | None]:
        return [stop_reason(self._last[index]) for index in sorted(self._last)]

    def _envelope(self, choices: list[TextChoice], **more: Any) -> TextCompletion:
        return TextCompletion(**self._head, object="text_completion", choices=choices, **more)
