"""Builds the HTTP API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

import minimind
from minimind.serving.api_errors import ERROR_RESPONSES, install_error_handlers
from minimind.serving.generation_routes import add_generation_routes
from minimind.serving.json_body import JsonRoute
from minimind.serving.metrics import ServerMetrics
from minimind.serving.middleware import OWN_HEADERS, AccessMiddleware, LoggingMiddleware
from minimind.serving.response_schemas import Health, ModelCard, ModelList, Version
from minimind.serving.service import Service
from minimind.serving.text_routes import add_text_routes


def build_app(service: Service) -> FastAPI:
    """Builds the application over `service`, and closes the service when the application ends."""

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
    app.router.route_class = JsonRoute
    app.add_middleware(AccessMiddleware, service=service)
    if settings.cors_origins:
        # Outside the access checks: a browser first asks, without a key, whether it may call, and
        # must be able to read refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*OWN_HEADERS, "retry-after"],
            allow_private_network=True,
        )
    app.add_middleware(LoggingMiddleware, metrics=metrics)
    install_error_handlers(app)

    def get(path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Registers GET and HEAD for a path; the API's description lists only GET."""

        def add(handler: Callable[..., Any]) -> Callable[..., Any]:
            app.get(path, **options)(handler)
            app.head(path, include_in_schema=False, **options)(handler)
            return handler

        return add

    @get("/health", responses={503: {"model": Health}})
    async def health() -> Health:
        """Tells whether the server answers calls, with status 503 if it does not."""
        found = Health(status=service.status)
        if found.status == "ok":
            return found
        return JSONResponse(found.model_dump(), 503)  # type: ignore[return-value]

    @get("/version")
    async def version() -> Version:
        return Version(version=minimind.__version__)

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
    }

    @get("/metrics", response_class=Response, responses=text)
    async def prometheus_metrics() -> Response:
        """Gives the metrics in Prometheus's format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @get("/v1/models", responses=ERROR_RESPONSES)
    async def list_models() -> ModelList:
        return ModelList(data=[model.card for model in service.models.values()])

    @get("/v1/models/{name:path}", responses=ERROR_RESPONSES)
    async def show_model(name: Annotated[str, Path()]) -> ModelCard:
        return service.find(name).card

    add_generation_routes(app, service)
    add_text_routes(app, service)
    return app
