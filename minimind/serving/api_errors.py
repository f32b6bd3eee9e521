"""Writes every error in the form that OpenAI's clients read: {"error": {message, type, param,
code}}."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from minimind.serving.field_standing import UNSUPPORTED

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_MAX_PROBLEMS = 3
_CHOICE = re.compile(
    r"str|int|float|bool|none|[a-z-]*\[.*|[a-z]+-[a-z-]+|[A-Z][A-Za-z]+", re.DOTALL
)


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetails


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
}
"""The error responses that any call may give, for the API's description."""


class ApiError(HTTPException):
    """Holds an error for the client, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        # Escaped, because a message may quote a lone surrogate, which has no UTF-8 form.
        content = json.dumps(self.body)
        return Response(content, self.status, self.headers, media_type="application/json")


@asynccontextmanager
async def timely(timeout_s: float) -> AsyncIterator[None]:
    """Raises ApiError (504) if the block takes longer than `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        message = f"the answer took longer than {timeout_s:g} s; ask for less at once"
        raise ApiError(504, message, code="timeout") from None


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error response of `app` take the form above."""
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Names each invalid field once, with all that its value might have been."""
    assert isinstance(error, RequestValidationError)
    problems: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for problem in error.errors():
        kind = refused if problem["type"] == UNSUPPORTED else problems
        kind.setdefault(_place(problem["loc"]), []).append(problem["msg"])
    if refused:
        # For a refused field pydantic also lists everything else that the value is not; leave that
        # out.
        texts = [f"{place} {found[0]}" for place, found in refused.items()]
    else:
        texts = [
            f"{place or 'body'}: {' or '.join(dict.fromkeys(found))}"
            for place, found in problems.items()
        ]
    if len(texts) > _MAX_PROBLEMS:
        texts[_MAX_PROBLEMS:] = [f"and {len(texts) - _MAX_PROBLEMS} more"]
    param = next(iter(refused or problems)) or None
    code = UNSUPPORTED if refused else "invalid_value"
    return ApiError(400, "; ".join(texts), param=param, code=code).response()


def _place(loc: tuple[int | str, ...]) -> str:
    """Writes ("body", "messages", 0, "role") as messages[0].role, without the names that pydantic
    adds for the members of a union."""
    fields = [part for part in loc[1:] if isinstance(part, int) or not _CHOICE.fullmatch(part)]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in fields]
    return "".join(parts).removeprefix(".")


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answers an ApiError, and what Starlette and FastAPI refuse themselves: an unknown path, a
    wrong method, a bad body."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error.response()
    path = request.url.path
    message = {
        404: f"there is no {path}; the API is under /v1, its description at /openapi.json",
        405: f"{path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()
