"""Errors as OpenAI's clients read them: {"error": {message, type, param, code}}, always."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_MAX_PROBLEMS = 3


class ApiError(Exception):
    """What a client is told, with the HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

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
        # Escaped, because a message may quote half a character, which has no UTF-8 form.
        content = json.dumps(self.body)
        return Response(content, self.status, self.headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Every answer of `app` that is an error takes the form above."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        reason, at = problems[0].get("ctx", {}).get("error", ""), problems[0]["loc"][-1]
        message = f"the body is not JSON: {reason} at character {at}"
        return ApiError(400, message, code="invalid_json").response()
    texts = [f"{_place(p['loc']) or 'body'}: {p['msg']}" for p in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        texts.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    param = _place(problems[0]["loc"]) or None
    return ApiError(400, "; ".join(texts), param=param, code="invalid_value").response()


def _place(loc: tuple[int | str, ...]) -> str:
    """("body", "messages", 0, "role") as messages[0].role."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc[1:]]
    return "".join(parts).removeprefix(".")


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette and FastAPI refuse themselves: no such path, another method, the body."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {
        # FastAPI says no more of it.
        400: "the body is not JSON: it is not UTF-8, or nested too deep",
        404: f"there is no {path}; the API is under /v1, its description at /openapi.json",
        405: f"{path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()


async def _on_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500, "the server failed; its log says how").response()
