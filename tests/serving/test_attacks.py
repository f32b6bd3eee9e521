"""Whatever a client sends, it gets an error in OpenAI's form, and the others are unharmed."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx2 as httpx
import pytest
from live_servers import LiveServer, ScriptedEngine, Serve

from minimind.serving.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"
MESSAGES = [{"role": "user", "content": "hi"}]

F = {"name": "f"}


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"function": {"name": "f", "arguments": arguments}}
    return [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]


def check_error(response: httpx.Response, status: int, message: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert message in body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"messages": None}, "messages", "list"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": called("{")}, ARGUMENTS, "not JSON"),
        ({"messages": called("[1]")}, ARGUMENTS, "not a JSON object"),
        ({"messages": called('{"a": "\\ud800"}')}, ARGUMENTS, "half a character"),
        ({"messages": called('{"a": NaN}')}, ARGUMENTS, "NaN is no number"),
        ({"messages": called('{"a": ' * 900 + "1" + "}" * 900)}, ARGUMENTS, "nested too deep"),
        ({"messages": called('{"a": %s}' % ("9" * 5000))}, ARGUMENTS, "4300 digits"),
        ({"model": "huge"}, "model", "there is no model 'huge'"),
        ({"model": 7}, "model", "string"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "0.5"}, "temperature", "number"),
        ({"temperature": True}, "temperature", "number"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"top_k": -2}, "top_k", "greater"),
        ({"top_k": 1 << 70}, "top_k", "less than"),
        ({"n": 0}, "n", "greater"),
        ({"n": 1000}, "n", "less"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": -5}, "max_tokens", "greater"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"max_tokens": 201}, "max_tokens", "at most 200"),
        ({"seed": 1 << 80}, "seed", "less than"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"functions": [{"name": ""}]}, "functions[0].name", "at least 1 character"),
        ({"function_call": {"name": "f"}}, "tools", "there are no tools"),
        ({"functions": [F], "function_call": {"name": "g"}}, "tool_choice", "names 'g'"),
        ({"functions": [F], "tools": [{"function": F}]}, "functions", "exclude each other"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "greater than or equal to 1"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "'text'"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "'none'"),
        ({"presence_penalty": 9}, "presence_penalty", "less"),
    ],
)
@pytest.mark.faults("requests with wrong types, huge numbers, deep nesting", "400, with the field")
def test_values_that_cannot_be_used(
    tiny: LiveServer, change: dict[str, Any], param: str | None, message: str
) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2} | change
    response = httpx.post(tiny.url + CHAT, json=body)
    status = 404 if change.get("model") == "huge" else 400
    assert check_error(response, status, message)["param"] == param


def test_whole_numbers_may_be_written_with_a_point(tiny: LiveServer) -> None:
    body = {"model": "tiny", "prompt": [1.0, 50.0], "max_tokens": 2.0}
    response = httpx.post(tiny.url + TEXT, json=body)
    assert response.json()["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_too_many_tokens(tiny: LiveServer, limit: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi " * 60}], limit: 200}
    error = check_error(httpx.post(tiny.url + CHAT, json=body), 400, "context is 256 tokens")
    assert error["code"] == "context_length_exceeded"
    body = {"model": "tiny", "prompt": "word " * 300}
    check_error(httpx.post(tiny.url + TEXT, json=body), 400, "context is 256 tokens")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "required"),
        (b"{", 400, "not JSON"),
        (b"[1, 2]", 400, "object"),
        (b"null", 400, "object"),
        (b'"text"', 400, "object"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b'{"model": "\xff"}', 400, "not UTF-8"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400, "body"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "half a character"),
        (b'{"model": "\\ud800", "prompt": "a"}', 400, "half a character"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, "NaN is no number"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', 400, "finite"),
        (b'{"model": "tiny", "prompt": []}', 400, "prompt"),
        (b'{"model": "tiny", "prompt": [-1]}', 400, "prompt"),
        (b'{"model": "tiny", "prompt": [99999999]}', 400, "99999999"),
        (b'{"model": "tiny", "prompt": [99999999999999999999999]}', 400, "99999"),
        (b'{"model": "tiny", "prompt": "a", "suffix": "b"}', 400, "suffix is not supported"),
        (b'{"model": "tiny", "prompt": "", "add_special_tokens": false}', 400, "prompt is empty"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 300 + b"]" * 300 + b"}", 400, "too deep"),
        (b'{"a": ' * 300 + b"1" + b"}" * 300, 400, "too deep"),
        (b"[" * 90_000, 400, "too deep"),
        (b"x" * 100_001, 413, "100000 bytes are the most"),
        (b"x" * 50_000_000, 413, "100000 bytes are the most"),
    ],
)
@pytest.mark.faults("bodies that are no JSON, no UTF-8, too large", "400 or 413")
def test_bodies(tiny: LiveServer, content: bytes, status: int, message: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(tiny.url + TEXT, content=content, headers=headers, timeout=20)
    check_error(response, status, message)


@pytest.mark.faults("an endless body in chunks", "413")
def test_a_body_without_its_length_is_limited_too(tiny: LiveServer) -> None:
    pieces = (b"x" * 1000 for _ in range(500))
    headers = {"content-type": "application/json"}
    response = httpx.post(tiny.url + TEXT, content=pieces, headers=headers)
    check_error(response, 413, "100000 bytes are the most")


@pytest.mark.faults("a form sent by a web page", "415")
def test_a_body_that_is_not_said_to_be_json(tiny: LiveServer) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a"}).encode()
    check_error(httpx.post(tiny.url + TEXT, content=body), 415, "no Content-Type; send applic")
    # What a web page may send to this machine without asking.
    headers = {"content-type": "text/plain;charset=UTF-8"}
    response = httpx.post(tiny.url + TEXT, content=body, headers=headers)
    check_error(response, 415, "'text/plain'")


def test_a_body_that_is_packed(tiny: LiveServer) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    content = gzip.compress(json.dumps({"prompt": "a"}).encode())
    response = httpx.post(tiny.url + TEXT, content=content, headers=headers)
    check_error(response, 415, "the body's Content-Encoding is 'gzip'; send it as it is")


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "there is no /nowhere"),
        ("POST", "/v1/audio/speech", 404, "there is no /v1/audio/speech"),
        ("OPTIONS", CHAT, 405, "does not take OPTIONS"),
        ("GET", CHAT, 405, "does not take GET"),
        ("DELETE", "/v1/models", 405, "does not take DELETE"),
        ("GET", "/v1/models/%00%ff", 404, "there is no model"),
        ("GET", "/v1/models/../../etc/passwd", 404, "there is no"),
    ],
)
@pytest.mark.faults("unknown paths and methods", "404 or 405")
def test_paths_and_methods(
    tiny: LiveServer, method: str, path: str, status: int, message: str
) -> None:
    check_error(httpx.request(method, tiny.url + path), status, message)


def test_after_all_that_the_others_are_unharmed(tiny: LiveServer) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3}
    assert httpx.post(tiny.url + CHAT, json=body).status_code == 200
    assert tiny.engine().stats.free_slots == 4
    assert httpx.get(tiny.url + "/health").json() == {"status": "ok"}


@pytest.mark.faults("an answer that takes too long", "504")
def test_an_answer_that_takes_too_long(serve: Serve) -> None:
    engine = ScriptedEngine("x" * 1000, step_s=0.02)
    server = serve(ServerSettings(port=0, answer_timeout_s=0.2), tiny=engine)
    body = {"model": "tiny", "messages": MESSAGES}
    error = check_error(httpx.post(server.url + CHAT, json=body), 504, "longer than 0.2 s")
    assert error["code"] == "timeout"
    events = httpx.post(server.url + CHAT, json=body | {"stream": True}).text.split("\n\n")
    assert "longer than 0.2 s" in json.loads(events[-3].removeprefix("data: "))["error"]["message"]
    assert events[-2:] == ["data: [DONE]", ""]


@pytest.mark.faults("a bug in the server", "500 in the usual form; the server goes on")
def test_a_bug_is_answered_in_the_same_form(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(port=0, cors_origins=("*",))
    server = serve(settings, tiny=ScriptedEngine("yes"))
    monkeypatch.setattr(server.service, "find", None)
    with httpx.Client(base_url=server.url, headers={"Origin": "http://a"}) as client:
        for _ in range(3):
            response = client.post(CHAT, json={"messages": MESSAGES})
            error = check_error(response, 500, "the server failed; its log says how")
            assert error["type"] == "server_error"
            assert response.headers["access-control-allow-origin"] == "*"
            assert response.headers["x-request-id"]
        assert client.get("/health").status_code == 200


@pytest.mark.faults("an engine that has failed", "the server says so and answers no more")
def test_a_broken_engine_says_so(serve: Serve) -> None:
    server = serve(tiny=ScriptedEngine("x", error=ValueError("bug")))
    body = {"model": "tiny", "messages": MESSAGES}
    error = check_error(httpx.post(server.url + CHAT, json=body), 500, "the model failed")
    assert error["type"] == "server_error"
    health = httpx.get(server.url + "/health")
    assert (health.status_code, health.json()) == (503, {"status": "failed"})
    check_error(httpx.post(server.url + CHAT, json=body), 503, "the server is failed")
