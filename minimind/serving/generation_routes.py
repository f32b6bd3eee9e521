"""Adds the routes that continue a prompt: chat completions, text completions and responses."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from minimind.errors import ConfigError
from minimind.inference.request import GenerationRequest
from minimind.serving.api_errors import ERROR_RESPONSES, ApiError, timely
from minimind.serving.call_record import CallRecord
from minimind.serving.chat_completions import ChatWriter
from minimind.serving.completion_writer import CompletionWriter
from minimind.serving.engine_thread import Answer
from minimind.serving.event_stream import DONE, EventStream, unless_gone
from minimind.serving.field_standing import unknown_fields
from minimind.serving.request_schemas import AnyRequest, ChatRequest
from minimind.serving.response_schemas import ChatCompletion, TextCompletion
from minimind.serving.responses_schemas import OWN_NAMES, ResponseObject, ResponsesRequest
from minimind.serving.responses_writer import ResponsesWriter
from minimind.serving.served_model import ServedModel
from minimind.serving.service import Service
from minimind.serving.text_completions import TextWriter
from minimind.serving.text_schemas import CompletionRequest, each_text

_STREAMS: dict[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    200: {"content": {"text/event-stream": {}}},
}


def add_generation_routes(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMS)
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        model, record = open_call(service, request, body)
        record.ignore(model.unread_options(body))
        # Tokenising a long prompt takes time, so it runs in a thread and does not hold up other
        # calls.
        requests, in_reasoning = await asyncio.to_thread(model.chat_requests, body)
        record.notice = _unfinished(body)
        answer = submit(record, model, body.stream, requests)
        writer = ChatWriter(model, body, in_reasoning, record)
        return await respond(request, answer, writer, bool(body.stream))

    @app.post("/v1/responses", response_model=ResponseObject, responses=_STREAMS)
    async def responses(body: ResponsesRequest, request: Request) -> Any:
        model, record = open_call(service, request, body)
        try:
            chat = body.as_chat()
        except ValidationError as error:
            problems = error.errors()
            for one in problems:
                first, *rest = one["loc"]
                one["loc"] = ("body", *OWN_NAMES.get(str(first), (first,)), *rest)
            raise RequestValidationError(problems) from None
        record.ignore(model.unread_options(chat))
        if body.truncation == "auto":
            whole, chat = chat, await asyncio.to_thread(model.without_oldest, chat)
            if left_out := len(whole.messages) - len(chat.messages):
                record.notice = f"the input is too long: its oldest {left_out} turns were left out"
        requests, in_reasoning = await asyncio.to_thread(model.chat_requests, chat)
        answer = submit(record, model, body.stream, requests)
        writer = ResponsesWriter(model, body, chat, in_reasoning, record)
        return await respond(request, answer, writer, bool(body.stream), last=None)

    @app.post("/v1/completions", response_model=TextCompletion, responses=_STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        model, record = open_call(service, request, body)
        prompts = await asyncio.to_thread(model.read_texts, body, body.prompt, "prompt")
        record.notice = _misread(model, body)
        requests = await asyncio.to_thread(model.completion_requests, body, prompts)
        echoes = ()
        if body.echo:
            async with timely(settings.answer_timeout_s):
                echoes = await unless_gone(request.receive, model.echoes(body, prompts))
        answer = submit(record, model, body.stream, requests)
        writer = TextWriter(model, body, record, echoes)
        return await respond(request, answer, writer, bool(body.stream))

    def submit(
        record: CallRecord,
        model: ServedModel,
        stream: bool | None,
        requests: list[GenerationRequest],
    ) -> Answer:
        record.stream = bool(stream)
        if settings.log_prompts:
            record.prompt = model.tokenizer.decode(requests[0].prompt_ids, skip_special=False)
        try:
            return model.thread.submit(requests, settings.answer_timeout_s)
        except ConfigError as error:
            raise ApiError(400, str(error)) from None

    async def respond(
        request: Request,
        answer: Answer,
        writer: CompletionWriter,
        stream: bool,
        last: str | None = DONE,
    ) -> Any:
        if stream:
            chunks = writer.chunks(answer)
            return EventStream(chunks, answer.close, settings.send_timeout_s, last)
        try:
            return await unless_gone(request.receive, writer.whole(answer))
        finally:
            answer.close()


def open_call(
    service: Service, request: Request, body: AnyRequest
) -> tuple[ServedModel, CallRecord]:
    """Finds the requested model and begins the call's record. Raises ApiError."""
    record: CallRecord = request.state.record
    record.ignore(unknown_fields(body))
    model = service.find(body.model)
    record.model = model.name
    return model, record


def _unfinished(body: ChatRequest) -> str | None:
    """Gives a hint for a client whose last message is the beginning of an answer; None if there is
    nothing to say."""
    asked = body.continues or body.add_generation_prompt is not None
    if asked or body.messages[-1].role != "assistant":
        return None
    return "the answer is a new turn; send continue_final_message true to continue the last message"


def _misread(model: ServedModel, body: CompletionRequest) -> str | None:
    """Gives a hint for a client whose prompt is a rendered conversation; None if it is not."""
    if body.parse_special is not None or model.parses_special:
        return None
    texts = [text for text in each_text(body.prompt) if isinstance(text, str)]
    spelled = next((found for text in texts if (found := model.spelled_tokens(text))), None)
    if spelled is None:
        return None
    return (
        f"the prompt spells {spelled[0]!a}, which was read as text; send parse_special true (or "
        "start the server with --parse_special), ids, or messages to /v1/chat/completions"
    )
