"""Connections whose clients are slow, or stop reading, or come back after an error."""

from __future__ import annotations

import http.client
import json
import time

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine, Serve, open_socket, read_all

from minimind.serving.server import ApiServer
from minimind.serving.service import Service
from minimind.serving.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.faults("a client that sends slowly", "cut off after the time limit")
def test_a_slow_sender_is_cut_off(serve: Serve) -> None:
    server = serve(ServerSettings(port=0, body_timeout_s=0.2), tiny=ScriptedEngine("x"))
    with open_socket(server) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n{")
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408")
    assert b"the body did not come within 0.2 s" in received


@pytest.mark.parametrize("after", ["", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize("sent", ["", "POST /v1/completions HTTP/1.1\r\nHo"])
def test_a_connection_without_a_whole_request_is_closed(
    serve: Serve, after: str, sent: str
) -> None:
    server = serve(ServerSettings(port=0, body_timeout_s=0.3), tiny=ScriptedEngine("x"))
    with open_socket(server) as connection:
        if after:
            connection.sendall(after.encode())
            received = b""
            while b'"ok"' not in received:
                received += connection.recv(4096)
        connection.sendall(sent.encode())
        started = time.monotonic()
        assert connection.recv(4096) == b""
        assert time.monotonic() - started > 0.1, "there was no time to send it"


def test_connections_are_kept_longer_than_clients_reuse_them() -> None:
    """httpx, and so the official client, does for 5 s."""
    settings = ServerSettings()
    assert ApiServer(Service(settings)).config.timeout_keep_alive > 5 + 10


def test_an_answer_may_take_longer_than_its_question(serve: Serve) -> None:
    engine = ScriptedEngine("x" * 60, step_s=0.02)
    server = serve(ServerSettings(port=0, body_timeout_s=0.1), tiny=engine)
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            response = client.post(CHAT, json={"model": "tiny", "messages": MESSAGES})
            assert response.json()["choices"][0]["message"]["content"] == engine.text


@pytest.mark.faults("a client that stops reading", "cut off; its slot is free")
def test_a_client_that_stops_reading_frees_its_slot(serve: Serve) -> None:
    engine = ScriptedEngine("x" * 40_000_000, piece=100_000)
    server = serve(ServerSettings(port=0, send_timeout_s=0.2), tiny=engine)
    body = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
    with open_socket(server) as connection:
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        deadline = time.monotonic() + 10
        while not engine.requests or engine.open:
            assert time.monotonic() < deadline, "the generation goes on for nobody"
            time.sleep(0.02)
    assert server.service.models["tiny"].thread._open == {}


def test_a_connection_outlives_a_bug(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(tiny=ScriptedEngine("yes"))
    monkeypatch.setattr(server.service, "find", None)
    body = json.dumps({"messages": MESSAGES})
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    sockets = set()
    for _ in range(3):
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert (response.status, response.read()[:9]) == (500, b'{"error":')
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1
    assert None not in sockets
