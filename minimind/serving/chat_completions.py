"""Answers /v1/chat/completions: turns the engine's deltas into OpenAI's objects, whole or in
chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minimind.inference.answer_parser import AnswerParser, Content, Part, Reasoning, ToolCall
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import Delta
from minimind.serving.call_record import CallRecord
from minimind.serving.completion_writer import CompletionWriter, stop_reason
from minimind.serving.engine_thread import Answer
from minimind.serving.logprob_format import chat_logprobs
from minimind.serving.request_schemas import ChatRequest
from minimind.serving.response_schemas import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    FunctionDelta,
    MessageDelta,
    StopReason,
    ToolCallDelta,
)
from minimind.serving.served_model import ServedModel
from minimind.serving.thoughts import Thoughts


@dataclass(slots=True)
class _Choice:
    """Collects the output of one choice."""

    parser: AnswerParser
    thoughts: Thoughts
    parts: list[Part] = field(default_factory=list)
    num_calls: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities that were not sent yet."""
    finish_reason: StopReason | None = None

    def take(self, delta: Delta) -> list[Part]:
        new = self.parser.push(delta.text)
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            new += self.parser.flush()
        new = self.thoughts.put(new)
        self.num_calls += sum(isinstance(part, ToolCall) for part in new)
        if delta.finish_reason is not None:
            self.finish_reason = stop_reason(delta)
            if self.num_calls and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        return new


class ChatWriter(CompletionWriter):
    def __init__(
        self, model: ServedModel, body: ChatRequest, in_reasoning: bool, record: CallRecord
    ) -> None:
        super().__init__("chatcmpl-", model, body, record)
        self._body = body
        self._choices = [
            _Choice(body.answer_parser(in_reasoning), Thoughts(body.thoughts))
            for _ in range(body.num_choices)
        ]

    async def whole(self, answer: Answer) -> ChatCompletion:
        async for index, delta in self._deltas(answer):
            choice = self._choices[index]
            choice.parts += choice.take(delta)
        return ChatCompletion(
            **self._head,
            choices=[self._choice(index, choice) for index, choice in enumerate(self._choices)],
            usage=self._usage,
        )

    async def chunks(self, answer: Answer) -> AsyncIterator[ChatChunk]:
        for index in range(len(self._choices)):
            yield self._chunk(index, MessageDelta(role="assistant", content=""))
        async for index, delta in self._deltas(answer):
            choice = self._choices[index]
            first_call = choice.num_calls
            for part in choice.take(delta):
                is_call = isinstance(part, ToolCall)
                if not (is_call and first_call and self._body.functions):
                    yield self._chunk(index, self._message_delta(part, first_call))
                first_call += is_call
            if choice.finish_reason is not None:
                yield self._chunk(index, MessageDelta(), self._reason(choice))
        if self._body.include_usage:
            yield self._envelope([], usage=self._usage)

    @property
    def _finish_reasons(self) -> list[StopReason | None]:
        return [self._reason(choice) for choice in self._choices]

    def _reason(self, choice: _Choice) -> StopReason | None:
        called = choice.finish_reason == "tool_calls" and self._body.functions
        return "function_call" if called else choice.finish_reason

    def _choice(self, index: int, choice: _Choice) -> ChatChoice:
        calls = [
            CalledTool(
                id=part.id, function=CalledFunction(name=part.name, arguments=part.arguments)
            )
            for part in choice.parts
            if isinstance(part, ToolCall)
        ]
        content = _join(choice.parts, Content)
        message = AssistantMessage(
            content=None if calls and not content else content,
            reasoning_content=_join(choice.parts, Reasoning) or None,
        )
        if self._body.functions and calls:
            message.function_call = calls[0].function
        else:
            message.tool_calls = calls or None
        reason = self._reason(choice)
        assert reason is not None
        return ChatChoice(
            index=index,
            message=message,
            logprobs=self._take_logprobs(choice),
            finish_reason=reason,
        )

    def _chunk(
        self, index: int, message: MessageDelta, finish_reason: StopReason | None = None
    ) -> ChatChunk:
        written = ChatChunkChoice(index=index, delta=message, finish_reason=finish_reason)
        choice = self._choices[index]
        if choice.logprobs:
            written.logprobs = self._take_logprobs(choice)
        return self._envelope([written])

    def _message_delta(self, part: Part, call_index: int) -> MessageDelta:
        match part:
            case Reasoning(text):
                return MessageDelta(reasoning_content=text)
            case Content(text):
                return MessageDelta(content=text)
            case ToolCall(id, name, arguments):
                function = FunctionDelta(name=name, arguments=arguments)
                if self._body.functions:
                    return MessageDelta(function_call=function)
                call = ToolCallDelta(index=call_index, id=id, type="function", function=function)
                return MessageDelta(tool_calls=[call])

    def _envelope(self, choices: list[ChatChunkChoice], **more: Any) -> ChatChunk:
        more = self._usage_so_far | more
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=choices, **more)

    def _take_logprobs(self, choice: _Choice) -> ChatLogprobs | None:
        if self._body.num_logprobs is None:
            return None
        entries, choice.logprobs = choice.logprobs, []
        return chat_logprobs(self._tokenizer, entries)


def _join(parts: Sequence[Part], kind: type[Reasoning] | type[Content]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))
