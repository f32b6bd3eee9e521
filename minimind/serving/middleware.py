"""Checks every call before it reaches the API, and logs it afterwards.

This is plain ASGI, because Starlette's base class for middleware hides that a client has
disconnected.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimind.serving.api_errors import ApiError
from minimind.serving.call_record import CallRecord
from minimind.serving.event_stream import ClientGone
from minimind.serving.metrics import ServerMetrics
from minimind.serving.service import Service

logger = logging.getLogger(__name__)
call_log = logging.getLogger("minimind.serving.calls")

OWN_HEADERS = ("x-request-id", "x-ignored-fields", "x-notice")
"""The headers of every response: the call's id, the request's unknown fields, and a hint for the
client."""
CLIENT_GONE = 499
"""nginx's status for a client that disconnected, for the log; nobody receives it."""


_NEED_MODELS = ("/v1", "/tokenize", "/detokenize")
_SLASHES = re.compile("//+")
_OTHER_PATHS = {
    "/chat/completions": "/v1/chat/completions",
    "/responses": "/v1/responses",
    "/models": "/v1/models",
    "/v1/health": "/health",
}
"""Other paths that llama.cpp accepts, since its clients may leave out /v1."""


class LoggingMiddleware:
    """Gives each call an id and a record; logs and counts it when it ends."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = CallRecord(uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                values = (record.request_id, ",".join(record.ignored_fields), record.notice)
                own = [
                    (name.encode(), value.encode())
                    for name, value in zip(OWN_HEADERS, values, strict=True)
                    if value
                ]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            status = CLIENT_GONE
        finally:
            self._write(scope, record, status)

    def _write(self, scope: Scope, record: CallRecord, status: int) -> None:
        seconds = time.perf_counter() - record.started
        # Unknown paths share one label; each would otherwise become a label of its own.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.count(record, route, status, seconds)
        fields = {
            "request_id": record.request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "model": record.model,
            "stream": record.stream or None,
            "first_token_s": record.first_token_s and round(record.first_token_s, 4),
            "prompt_tokens": record.usage and record.usage.prompt_tokens,
            "completion_tokens": record.usage and record.usage.completion_tokens,
            "finish_reasons": record.finish_reasons or None,
            "prompt": record.prompt,
            "ignored_fields": record.ignored_fields or None,
            "notice": record.notice,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        call_log.info("call", extra={"fields": given})


class AccessMiddleware:
    """Refuses calls without a key, while the server is not ready, or above the limit of calls; a
    call's body must arrive in time. Unexpected errors are answered with 500 here. Starlette itself
    would do that outside all middleware, where a browser cannot read the answer and the connection
    closes under the client's next call."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings = app, service, service.settings
        self._num_calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Changed in place, since the log reads from the scope which route was taken.
        scope["path"] = _usual_path(scope["path"])
        if scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        self._num_calls += 1
        try:
            await self._call(scope, self._within_limits(receive), send)
        finally:
            self._num_calls -= 1

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def note_beginning(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, note_beginning)
        except ClientGone:
            raise
        except Exception:
            if has_begun:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            error = ApiError(500, "the server failed; its log says how")
            await error.response()(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not self._settings.accepts_host(host):
            raise ApiError(
                403,
                f"the server is not called {host[:100]!a}: use its address, or start it with "
                "--allowed_host NAME or with a key",
                code="host_not_allowed",
            )
        keys = self._settings.api_keys
        if keys and not _has_key(scope["headers"], keys):
            raise ApiError(
                401,
                "an API key is needed: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        status = self._service.status
        if scope["path"].startswith(_NEED_MODELS) and status != "ok":
            raise ApiError(
                503, f"the server is {status}", code=status, headers={"Retry-After": "5"}
            )
        if self._num_calls >= self._settings.max_calls:
            raise ApiError(
                429,
                f"{self._num_calls} calls are in progress, the most this server takes",
                code="overloaded",
                headers={"Retry-After": "1"},
            )

    def _within_limits(self, receive: Receive) -> Receive:
        """Gives a `receive` under which the body must arrive in time and not be too large. After
        the body it only waits for the client to disconnect."""
        settings = self._settings
        deadline = asyncio.get_running_loop().time() + settings.body_timeout_s
        size, has_more = 0, True

        async def receive_body() -> Message:
            nonlocal size, has_more
            if not has_more:
                return await receive()
            message = await receive()
            size += len(message.get("body", b""))
            has_more = message.get("more_body", False)
            if size > settings.max_body_bytes:
                # A client that is still sending would see a connection reset instead of the answer.
                while has_more:
                    has_more = (await receive()).get("more_body", False)
                raise HTTPException(
                    413, f"the body is too large: {settings.max_body_bytes} bytes are the most"
                )
            return message

        async def receive_in_time() -> Message:
            try:
                async with asyncio.timeout_at(deadline if has_more else None):
                    return await receive_body()
            except TimeoutError:
                limit = f"{settings.body_timeout_s:g} s"
                raise HTTPException(
                    408, f"the body did not come within {limit}", {"Connection": "close"}
                ) from None

        return receive_in_time


def _usual_path(path: str) -> str:
    """Gives the path without doubled slashes, by the name under which the API has it."""
    path = _SLASHES.sub("/", path)
    path = path.rstrip("/") or "/"
    return _OTHER_PATHS.get(path, path)


def _has_key(headers: Sequence[tuple[bytes, bytes]], keys: Sequence[str]) -> bool:
    """Tells whether the headers hold one of `keys`; compares all keys in constant time."""
    values = dict(headers)
    scheme, _, token = values.get(b"authorization", b"").partition(b" ")
    given = token if scheme.lower() == b"bearer" else values.get(b"x-api-key", b"")
    found = False
    for key in keys:
        found |= hmac.compare_digest(given.strip(), key.encode())
    return found
