"""Answers /v1/responses: turns the engine's deltas into response objects, whole or as events."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from minimind.inference.answer_parser import Part, Reasoning, ToolCall
from minimind.inference.logprobs import TokenLogprob
from minimind.serving.call_record import CallRecord
from minimind.serving.completion_writer import CompletionWriter, stop_reason
from minimind.serving.engine_thread import Answer
from minimind.serving.logprob_format import chat_logprobs
from minimind.serving.request_schemas import ChatRequest
from minimind.serving.response_schemas import StopReason
from minimind.serving.responses_schemas import (
    InputDetails,
    OutputDetails,
    OutputItem,
    OutputText,
    ReasoningText,
    ResponseEvent,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from minimind.serving.served_model import ServedModel

_EVENT = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponsesWriter(CompletionWriter):
    """Writes an answer's items one after another: thoughts, texts, calls."""

    def __init__(
        self,
        model: ServedModel,
        body: ResponsesRequest,
        chat: ChatRequest,
        in_reasoning: bool,
        record: CallRecord,
    ) -> None:
        super().__init__("resp_", model, chat, record)
        self._body = body
        self._parser = chat.answer_parser(in_reasoning)
        self._done: list[OutputItem] = []
        self._open: Literal["message", "reasoning"] | None = None
        """The kind of the item to which the next text belongs; None between items."""
        self._open_id, self._text, self._thoughts = "", "", ""
        self._logprobs: list[dict[str, Any]] = []
        """The log-probabilities of the tokens in `_text`."""
        self._waiting: list[TokenLogprob] = []
        """The log-probabilities of tokens whose text is held back, mostly because it may become a
        tag."""
        self._num_events = 0
        self._finish_reason: StopReason | None = None

    async def whole(self, answer: Answer) -> ResponseObject:
        async for _ in self.chunks(answer):
            pass
        return self._response(ended=True)

    async def chunks(self, answer: Answer) -> AsyncIterator[ResponseEvent]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response().model_dump())
        async for _, delta in self._deltas(answer):
            parts = self._parser.push(delta.text)
            if delta.finish_reason is not None:
                parts += self._parser.flush()
                self._finish_reason = stop_reason(delta)
            self._waiting += delta.logprobs
            for part in parts:
                for event in self._take(part):
                    yield event
            if parts:
                self._waiting = []
        if not any(item.type != "reasoning" for item in self._done) and self._open != "message":
            for event in self._open_item("message"):
                yield event
        for event in self._close_item():
            yield event
        last = self._response(ended=True)
        yield self._event(f"response.{last.status}", response=last.model_dump())

    @property
    def _finish_reasons(self) -> list[StopReason | None]:
        called = any(item.type == "function_call" for item in self._done)
        return ["tool_calls" if called else self._finish_reason]

    def _take(self, part: Part) -> Iterator[ResponseEvent]:
        if isinstance(part, ToolCall):
            yield from self._close_item()
            yield from self._call(part)
            return
        kind = "reasoning" if isinstance(part, Reasoning) else "message"
        if self._open != kind:
            yield from self._close_item()
            yield from self._open_item(kind)
        self._text += part.text
        if isinstance(part, Reasoning):
            self._thoughts += part.text
        new = [] if isinstance(part, Reasoning) else self._logprobs_of(part.text)
        self._logprobs += new
        yield self._text_event("delta", new, delta=part.text)

    def _logprobs_of(self, text: str) -> list[dict[str, Any]]:
        """Gives the log-probabilities of the last waiting tokens, which make up `text`, and drops
        those before them, which belong to a tag."""
        missing, first = len(text.encode()), len(self._waiting)
        while missing > 0 and first > 0:
            first -= 1
            id = self._waiting[first].id
            missing -= len(self._tokenizer.token_bytes([id], skip_special=False))
        found = chat_logprobs(self._tokenizer, self._waiting[first:]).content
        return [one.model_dump() for one in found]

    def _open_item(self, kind: Literal["message", "reasoning"]) -> Iterator[ResponseEvent]:
        prefix = "msg" if kind == "message" else "rs"
        self._open, self._open_id, self._text = kind, f"{prefix}_{uuid.uuid4().hex}", ""
        self._logprobs = []
        yield self._item_event("added", self._item(kind, "in_progress", []))
        yield self._part_event("added")

    def _close_item(self) -> Iterator[ResponseEvent]:
        kind = self._open
        if kind is None:
            return
        yield self._text_event("done", self._logprobs, text=self._text)
        yield self._part_event("done")
        cut = self._finish_reason == "length"
        item = self._item(kind, "incomplete" if cut else "completed", [self._part()])
        yield self._item_event("done", item)
        self._done.append(item)
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[ResponseEvent]:
        fields = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call"}
        names = {"call_id": call.id, "name": call.name}
        begun = OutputItem(**fields, status="in_progress", **names, arguments="")  # type: ignore[arg-type]
        whole = OutputItem(**fields, status="completed", **names, arguments=call.arguments)  # type: ignore[arg-type]
        place = {"item_id": begun.id, "output_index": len(self._done)}
        name = "response.function_call_arguments"
        yield self._item_event("added", begun)
        yield self._event(f"{name}.delta", **place, delta=call.arguments)
        yield self._event(f"{name}.done", **place, name=call.name, arguments=call.arguments)
        yield self._item_event("done", whole)
        self._done.append(whole)

    def _item(self, kind: str, status: Any, content: list[dict[str, Any]]) -> OutputItem:
        beside = {"role": "assistant"} if kind == "message" else {"summary": []}
        return OutputItem(id=self._open_id, type=kind, status=status, content=content, **beside)  # type: ignore[arg-type]

    def _part(self) -> dict[str, Any]:
        if self._open == "message":
            return OutputText(text=self._text, logprobs=self._logprobs).model_dump()
        return ReasoningText(text=self._text).model_dump()

    def _item_event(self, name: str, item: OutputItem) -> ResponseEvent:
        fields = {"output_index": len(self._done), "item": item.model_dump()}
        return self._event(f"response.output_item.{name}", **fields)

    def _part_event(self, name: str) -> ResponseEvent:
        return self._event(f"response.content_part.{name}", **self._place(), part=self._part())

    def _text_event(
        self, name: str, logprobs: list[dict[str, Any]], **fields: str
    ) -> ResponseEvent:
        assert self._open is not None
        beside = {"logprobs": logprobs} if self._open == "message" else {}
        return self._event(
            f"response.{_EVENT[self._open]}.{name}", **self._place(), **fields, **beside
        )

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open_id, "output_index": len(self._done), "content_index": 0}

    def _event(self, type: str, **fields: Any) -> ResponseEvent:
        self._num_events += 1
        return ResponseEvent(type=type, sequence_number=self._num_events - 1, **fields)

    def _response(self, ended: bool = False) -> ResponseObject:
        body, choice = self._body, self._body.tool_choice or "auto"
        cut = self._finish_reason == "length"
        return ResponseObject(
            id=self._head["id"],
            created_at=self._head["created"],
            status=("incomplete" if cut else "completed") if ended else "in_progress",
            incomplete_details={"reason": "max_output_tokens"} if ended and cut else None,
            instructions=body.instructions,
            metadata=body.metadata if isinstance(body.metadata, dict) else {},
            model=self._head["model"],
            output=list(self._done),
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            tool_choice=choice if isinstance(choice, str) else choice.declared(),
            tools=[tool.declared() for tool in body.tools or ()],
            usage=self._response_usage if ended else None,
        )

    @property
    def _response_usage(self) -> ResponseUsage:
        usage = self._usage
        thoughts = len(self._tokenizer.encode(self._thoughts))
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=thoughts),
            total_tokens=usage.total_tokens,
        )
