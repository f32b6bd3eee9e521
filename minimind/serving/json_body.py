"""Reads a client's JSON strictly, so that later code meets no value that it cannot write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from minimind.config.json_file import parse_json
from minimind.serving.api_errors import ApiError

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(text: bytes) -> Any:
    """Parses a request's body. Raises ValueError with a message for the client."""
    try:
        whole = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None
    try:
        found = parse_json(whole, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate)") from None
    return found


class JsonRoute(APIRoute):
    """Is a route whose body is JSON and is declared as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def body(self) -> bytes:
        body = await super().body()
        packing = self.headers.get("content-encoding", "identity").strip().lower()
        if body and packing != "identity":
            message = f"the body's Content-Encoding is {packing!r}; send it as it is"
            raise ApiError(415, message, code="unsupported_media_type")
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A web page may send any other content type to this machine without the browser asking
        # first.
        if body and kind != "application/json":
            given = (
                f"the body's Content-Type is {kind!r}" if kind else "the body has no Content-Type"
            )
            raise ApiError(415, f"{given}; send application/json", code="unsupported_media_type")
        return body

    async def json(self) -> Any:
        try:
            return read_json(await self.body())
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
