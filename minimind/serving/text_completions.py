"""Answers /v1/completions: continues prompts as documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from minimind.inference.logprobs import TokenLogprob
from minimind.serving.call_record import CallRecord
from minimind.serving.completion_writer import CompletionWriter, stop_reason
from minimind.serving.engine_thread import Answer
from minimind.serving.logprob_format import TextLogprobWriter
from minimind.serving.response_schemas import StopReason, TextChoice, TextCompletion
from minimind.serving.served_model import Echo, ServedModel
from minimind.serving.text_schemas import CompletionRequest


class TextWriter(CompletionWriter):
    """Writes the choices, numbered prompt by prompt."""

    def __init__(
        self,
        model: ServedModel,
        body: CompletionRequest,
        record: CallRecord,
        echoes: Sequence[Echo] = (),
    ) -> None:
        """`echoes` holds an Echo for each prompt, if the answers begin with their prompts."""
        super().__init__("cmpl-", model, body, record)
        self._body, self._echoes = body, echoes

    async def whole(self, answer: Answer) -> TextCompletion:
        texts: dict[int, list[str]] = {}
        logprobs: dict[int, list[TokenLogprob]] = {}
        for index in answer.open_choices.values():
            echo = self._echo(index)
            texts[index], logprobs[index] = [echo.text], [*echo.logprobs]
        async for index, delta in self._deltas(answer):
            texts[index].append(delta.text)
            logprobs[index] += delta.logprobs
        choices = [
            TextChoice(index=index, text="".join(texts[index]), finish_reason=reason)
            for index, reason in enumerate(self._finish_reasons)
        ]
        if self._body.logprobs is not None:
            for choice in choices:
                writer = TextLogprobWriter(self._tokenizer)
                choice.logprobs = writer.write(logprobs[choice.index])
        return self._envelope(choices, usage=self._usage)

    async def chunks(self, answer: Answer) -> AsyncIterator[TextCompletion]:
        indices = list(answer.open_choices.values())
        writers = {index: TextLogprobWriter(self._tokenizer) for index in indices}
        for index in indices if self._echoes else ():
            echo = self._echo(index)
            choice = TextChoice(index=index, text=echo.text, finish_reason=None)
            if echo.logprobs:
                choice.logprobs = writers[index].write(echo.logprobs)
            yield self._envelope([choice], **self._usage_so_far)
        async for index, delta in self._deltas(answer):
            choice = TextChoice(index=index, text=delta.text, finish_reason=stop_reason(delta))
            if delta.logprobs:
                choice.logprobs = writers[index].write(delta.logprobs)
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                yield self._envelope([choice], **self._usage_so_far)
        if self._body.include_usage:
            yield self._envelope([], usage=self._usage)

    def _echo(self, index: int) -> Echo:
        return self._echoes[index // self._num_choices] if self._echoes else Echo("", [])

    @property
    def _finish_reasons(self) -> list[StopReason | None]:
        return [stop_reason(self._last[index]) for index in sorted(self._last)]

    def _envelope(self, choices: list[TextChoice], **more: Any) -> TextCompletion:
        return TextCompletion(**self._head, object="text_completion", choices=choices, **more)
