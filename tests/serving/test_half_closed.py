"""Clients that end their sending side once they have asked, and clients that are gone: both look
the same to a server that only reads."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest
from live_servers import ScriptedEngine, Serve, open_socket, read_all

from minimind.serving.settings import ServerSettings

TEXT = "word " * 30


def request(stream: bool = False, version: str = "1.1", cut: int = 0) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": "a", "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body[: len(body) - cut]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.faults("a client that ends its sending side and waits", "gets its answer")
def test_a_half_closed_client_gets_its_answer(serve: Serve, stream: bool, version: str) -> None:
    server = serve(tiny=ScriptedEngine(TEXT, step_s=0.02))
    with open_socket(server) as connection:
        connection.sendall(request(stream, version))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.count(b" 200 OK\r\n") == 1
    assert received.startswith(b"HTTP/1.1 102" if version == "1.1" and not stream else b"HTTP/1.1")
    assert (b" 102 " in received) <= (version == "1.1")
    if stream:
        events = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in events]
        assert "".join(texts) == TEXT
        assert b"data: [DONE]" in received
    else:
        assert json.loads(received.split(b"\r\n\r\n")[-1])["choices"][0]["text"] == TEXT


def test_both_of_two_requests_in_a_row_are_answered(serve: Serve) -> None:
    server = serve(tiny=ScriptedEngine(TEXT, step_s=0.01))
    with open_socket(server) as connection:
        connection.sendall(request() + request())
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.count(b" 200 OK\r\n") == received.count(TEXT.encode()) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.faults("a client that goes away before its answer ends", "its slot is free")
def test_a_client_that_is_gone_frees_its_slot(serve: Serve, stream: bool) -> None:
    engine = ScriptedEngine("x" * 100_000, step_s=0.01)
    server = serve(tiny=engine)
    with open_socket(server) as connection:
        connection.sendall(request(stream))
        if stream:
            assert b"data: {" in connection.recv(4096) + connection.recv(4096)
        wait_until(lambda: bool(engine.open), "the generation has not begun")
    wait_until(lambda: not engine.open, "the generation goes on for nobody")
    assert server.service.models["tiny"].thread._open == {}


@pytest.mark.parametrize("sent", [b"", request()[:30], request(cut=5)])
def test_a_half_closed_client_without_a_whole_request_is_let_go(serve: Serve, sent: bytes) -> None:
    server = serve(ServerSettings(port=0, body_timeout_s=60), tiny=ScriptedEngine(TEXT))
    with open_socket(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
