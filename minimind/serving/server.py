"""Runs uvicorn with the API. It listens while models are being loaded, and finishes running answers
when told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import sys
from datetime import UTC, datetime
from types import FrameType

import uvicorn

from minimind.errors import ConfigError, MiniMindError
from minimind.serving.app import build_app
from minimind.serving.http_protocol import build_protocol
from minimind.serving.service import ModelSource, Service
from minimind.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_AFTER_CUT_OFF_S = 5
"""The seconds in which answers that were cut off may report that."""


def serve(sources: dict[str, ModelSource], settings: ServerSettings) -> None:
    """Serves until SIGINT or SIGTERM. Raises a MiniMindError where the settings, the address or a
    model cannot be used."""
    settings.check()
    asyncio.run(_serve(sources, settings))


async def _serve(sources: dict[str, ModelSource], settings: ServerSettings) -> None:
    service = Service(settings)
    server = ApiServer(service)
    listener = listen(settings)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    try:
        await service.load(sources)
        logger.info("ready: %s", ", ".join(service.models))
    except MiniMindError:
        server.should_exit = True
        raise
    finally:
        await running


def listen(settings: ServerSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port)[0][0]
        return socket.create_server(
            (settings.host, settings.port), family=family, backlog=2 * settings.max_calls
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            "give another --port"
        ) from None


class ApiServer(uvicorn.Server):
    def __init__(self, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            build_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            http=build_protocol(settings.body_timeout_s),
            # uvicorn keeps idle connections for 5 s by default, and so does httpx, which then uses
            # connections that have just been closed. The time limit for a request's head is longer.
            timeout_keep_alive=math.ceil(settings.body_timeout_s),
            timeout_graceful_shutdown=int(settings.shutdown_s) + _AFTER_CUT_OFF_S,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the shutdown at the first signal and hurries it at the second. uvicorn's own
        method would raise the signal again afterwards, so that the process would not exit with
        0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
        await super().shutdown(sockets)


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object, to which `extra={"fields": …}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up_server_logging() -> None:
    """Logs JSON lines to stderr. They contain no prompts unless the settings say so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
