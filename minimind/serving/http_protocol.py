"""Extends uvicorn's HTTP protocol: a time limit for a request's head, and clients that end their
sending side while they wait for an answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_PROBE = b"HTTP/1.1 102 Processing\r\n\r\n"
"""An interim response (RFC 9110, section 15.2), which clients that wait for an answer pass over."""
_FIRST_LOOK_S, _MOST_BETWEEN_LOOKS_S = 0.05, 1.0


def build_protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """Builds the protocol, with a time limit for a request's head; uvicorn would wait for it for
    ever."""
    # The base is one of two classes without a common type.
    base: Any = AutoHTTPProtocol

    class Protocol(base):
        _head_timer: asyncio.TimerHandle | None = None
        _look_timer: asyncio.TimerHandle | None = None
        _is_half_closed = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self._stop_head_timer()
            if self._look_timer is not None:
                self._look_timer.cancel()

        def eof_received(self) -> bool:
            """Keeps the connection while an answer to a whole request is under way: the client may
            have ended its sending side alone, or be gone altogether, which looks the same."""
            if not self._is_answering or self.cycle.more_body:
                return False
            if not self._is_half_closed:
                self._is_half_closed = True
                # Writing makes the client's system reset the connection if no process there holds
                # it. HTTP/1.0 knows no interim responses.
                if not self.cycle.response_started and self.scope["http_version"] == "1.1":
                    self.transport.write(_PROBE)
                self._look_again(_FIRST_LOOK_S)
            return True

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_half_closed and not self._is_answering:
                self.transport.close()

        @property
        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _look_again(self, after_s: float) -> None:
            """Checks repeatedly whether the connection was reset, and ends it then. asyncio does
            not report a reset, since it no longer reads."""

            def look() -> None:
                peer: socket.socket = self.transport.get_extra_info("socket")
                if peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.transport.abort()
                elif not self.transport.is_closing():
                    self._look_again(min(2 * after_s, _MOST_BETWEEN_LOOKS_S))

            self._look_timer = self.loop.call_later(after_s, look)

        def _watch_head(self) -> None:
            """Starts the timer while a request's head is incomplete."""
            if self._is_answering:
                self._stop_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(head_timeout_s, self.transport.close)

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return Protocol
