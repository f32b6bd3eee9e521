"""Sends server-sent events, and stops work whose client has disconnected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from minimind.serving.api_errors import ApiError

T = TypeVar("T")
DONE = "[DONE]"


class ClientGone(Exception):
    """Reports that the client closed its connection or stopped reading."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Gives the result of `work`. If the client disconnects first, cancels the work and raises
    ClientGone."""
    running = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait((running, gone), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        return running.result()
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends each object as a server-sent event, then a last event. An ApiError on the way is sent
    as an event too. An object's `type`, if it has one, becomes its event's type."""

    media_type = "text/event-stream"

    def __init__(
        self,
        objects: AsyncIterator[BaseModel],
        on_close: Callable[[], None],
        send_timeout_s: float,
        last: str | None = DONE,
    ) -> None:
        """`on_close` is called once, however the stream ends. A client that reads nothing for
        `send_timeout_s` counts as gone. `last` is the data of the last event; None sends none."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._objects, self._on_close, self._send_timeout_s = objects, on_close, send_timeout_s
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._write(send))
        finally:
            self._on_close()

    async def _write(self, send: Send) -> None:
        async def event(data: str, type: str | None = None) -> None:
            name = f"event: {type}\n" if type else ""
            await self._send_in_time(send, f"{name}data: {data}\n\n".encode(), more=True)

        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            async with aclosing(self._objects) as objects:  # type: ignore[type-var]
                async for item in objects:
                    kind = getattr(item, "type", None)
                    await event(item.model_dump_json(exclude_unset=True), kind)
        except ApiError as error:
            await event(json.dumps(error.body), None if self._last else "error")
        if self._last is not None:
            await event(self._last)
        await self._send_in_time(send, b"", more=False)

    async def _send_in_time(self, send: Send, body: bytes, more: bool) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise ClientGone from None
