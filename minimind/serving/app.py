"""The HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive

import minimind
from minimind.errors import ConfigError
from minimind.inference.request import GenerationRequest
from minimind.serving.api_errors import ApiError, install_error_handlers
from minimind.serving.call_record import CallRecord
from minimind.serving.chat_completions import ChatWriter
from minimind.serving.completion_writer import CompletionWriter
from minimind.serving.engine_thread import Answer
from minimind.serving.event_stream import EventStream, unless_gone
from minimind.serving.gate import Gate, Observer
from minimind.serving.metrics import ServerMetrics
from minimind.serving.request_schemas import ChatRequest, CompletionRequest
from minimind.serving.response_schemas import (
    ChatCompletion,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
)
from minimind.serving.served_model import ServedModel
from minimind.serving.service import Service
from minimind.serving.text_completions import TextWriter

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503, 504)
}
_STREAMS: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    200: {"content": {"text/event-stream": {}}},
}


def build_app(service: Service) -> FastAPI:
    """The application over `service`, which it closes at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    settings = service.settings
    metrics = ServerMetrics(lambda: service.models)
    app = FastAPI(
        title="MiniMind",
        version=minimind.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(Gate, service=service, settings=settings)
    app.add_middleware(Observer, metrics=metrics)
    install_error_handlers(app)

    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> Health:
        """Whether calls are answered; 503 where not."""
        found = Health(status=service.status)
        if found.status == "ok":
            return found
        return JSONResponse(found.model_dump(), 503)  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response, responses=_text_response("text/plain"))
    async def prometheus_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=_ERRORS)
    async def list_models() -> ModelList:
        return ModelList(data=[model.card for model in service.models.values()])

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def show_model(name: Annotated[str, Path()]) -> ModelCard:
        return service.find(name).card

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMS)
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        model = service.find(body.model)
        # Long prompts take a while to tokenise, which must not hold up others.
        requests, in_reasoning = await asyncio.to_thread(model.chat_requests, body)
        record = _open_record(request, model, body.stream, requests)
        answer = _submit(model, requests)
        return await _respond(
            request, answer, ChatWriter(model, body, in_reasoning, record), bool(body.stream)
        )

    @app.post("/v1/completions", response_model=TextCompletion, responses=_STREAMS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        model = service.find(body.model)
        requests = await asyncio.to_thread(model.completion_requests, body)
        record = _open_record(request, model, body.stream, requests)
        answer = _submit(model, requests)
        return await _respond(request, answer, TextWriter(model, body, record), bool(body.stream))

    def _submit(model: ServedModel, requests: list[GenerationRequest]) -> Answer:
        try:
            return model.thread.submit(requests, settings.answer_timeout_s)
        except ConfigError as error:
            raise ApiError(400, str(error)) from None

    def _open_record(
        request: Request,
        model: ServedModel,
        stream: bool | None,
        requests: list[GenerationRequest],
    ) -> CallRecord:
        record: CallRecord = request.state.record
        record.model, record.stream = model.name, bool(stream)
        if settings.log_prompts:
            record.prompt = model.tokenizer.decode(requests[0].prompt_ids, skip_special=False)
        return record

    async def _respond(
        request: Request, answer: Answer, writer: CompletionWriter, stream: bool
    ) -> Any:
        if stream:
            return EventStream(writer.chunks(answer), answer.close, settings.send_timeout_s)
        return await _whole(request.receive, answer, writer)

    return app


async def _whole(receive: Receive, answer: Answer, writer: CompletionWriter) -> Any:
    try:
        return await unless_gone(receive, writer.whole(answer))
    finally:
        answer.close()


def _text_response(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string"}}}}}
