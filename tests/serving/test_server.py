"""Who may listen where, what is logged and counted, and how a server ends."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from live_servers import LiveServer, ScriptedEngine, Serve

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.serving.server import JsonLines
from minimind.serving.server import serve as run_server
from minimind.serving.service import Service
from minimind.serving.settings import ServerSettings

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}]}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    ServerSettings(host=host).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="there is no API key"):
        ServerSettings(host=host).check()
    ServerSettings(host=host, api_keys=("k",)).check()
    ServerSettings(host=host, allow_no_key=True).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"max_body_bytes": 0}, "max_body_bytes is 0"),
        ({"answer_timeout_s": 0.0}, "answer_timeout_s is 0"),
        ({"shutdown_s": float("nan")}, "shutdown_s is nan"),
        ({"shutdown_s": float("inf")}, "shutdown_s is inf"),
        ({"api_keys": ("",)}, "API key is empty"),
        ({"api_keys": ("schlüssel",)}, "not ASCII"),
    ],
)
def test_settings_that_cannot_be_used(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**change).check()


def test_a_taken_port_is_named(tiny: LiveServer) -> None:
    port = int(tiny.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}"):
        run_server({}, ServerSettings(port=port))


def test_keys_guard_all_but_health(serve: Serve) -> None:
    server = serve(ServerSettings(port=0, api_keys=("k",)), tiny=ScriptedEngine("x"))
    assert httpx.get(f"{server.url}/health").status_code == 200
    for path in ("/metrics", "/openapi.json", "/v1/models", "/nowhere"):
        for header in ({}, {"authorization": "Basic k"}, {"authorization": "Bearer kk"}):
            response = httpx.get(server.url + path, headers=header)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
        let_in = httpx.get(server.url + path, headers={"authorization": "Bearer k"})
        assert let_in.status_code == (404 if path == "/nowhere" else 200)


def test_a_server_that_loads_says_so(serve: Serve) -> None:
    server = serve(tiny=ScriptedEngine("x"))
    server.service.is_loading = True
    assert httpx.get(f"{server.url}/health").json() == {"status": "loading"}
    response = httpx.post(server.url + CHAT, json=ASK)
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "the server is loading"
    server.service.is_loading = False
    assert httpx.post(server.url + CHAT, json=ASK).status_code == 200


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_holds_prompts_only_when_told(
    serve: Serve, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    caplog.set_level(logging.INFO, logger="minimind.serving.calls")
    server = serve(ServerSettings(port=0, log_prompts=log_prompts), tiny=ScriptedEngine("hidden"))
    response = httpx.post(server.url + CHAT, json=ASK)
    httpx.get(f"{server.url}/nowhere")
    records: list[logging.LogRecord] = []
    deadline = time.monotonic() + 10
    while len(records) < 2:  # written after the answer
        assert time.monotonic() < deadline, "a call was not logged"
        time.sleep(0.005)
        records = [record for record in caplog.records if record.name == "minimind.serving.calls"]
    call, nowhere = [json.loads(JsonLines().format(record)) for record in records]
    assert call["request_id"] == response.headers["x-request-id"]
    assert (call["method"], call["path"], call["status"]) == ("POST", CHAT, 200)
    assert (call["model"], call["prompt_tokens"], call["completion_tokens"]) == ("tiny", 7, 2)
    assert call["finish_reasons"] == ["stop"]
    assert call["seconds"] >= call["first_token_s"] > 0
    assert nowhere["status"] == 404
    text = json.dumps([call, nowhere])
    assert ("a secret" in text) is log_prompts
    assert "hidden" not in text


def test_the_log_is_one_json_object_a_line() -> None:
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "two\nlines \ud800 %s", ("x",), None)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line)["level"] == "error"


def test_metrics(serve: Serve) -> None:
    engine = ScriptedEngine("x" * 9, max_batch=3)
    server = serve(tiny=engine)
    for path in (CHAT, CHAT, "/nowhere", "/elsewhere"):
        httpx.post(server.url + path, json=ASK)
    text = httpx.get(f"{server.url}/metrics").text

    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    assert value(f'minimind_http_requests_total{{route="{CHAT}",status="200"}}') == 2
    assert value('minimind_http_requests_total{route="other",status="404"}') == 2
    assert value('minimind_first_token_seconds_count{model="tiny"}') == 2
    assert value('minimind_free_slots{model="tiny"}') == 3
    assert value('minimind_completion_tokens_total{model="tiny"}') == 0


@pytest.mark.parametrize("in_time", [True, False])
def test_answers_are_finished_or_cut_off_when_the_server_stops(serve: Serve, in_time: bool) -> None:
    engine = ScriptedEngine("x" * 200, step_s=0.01)
    server = serve(ServerSettings(port=0, shutdown_s=20.0 if in_time else 0.2), tiny=engine)
    url = server.url + CHAT
    with httpx.stream("POST", url, json=ASK | {"stream": True}, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        server.stop()
        while server.service.status != "stopping":
            time.sleep(0.01)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    if in_time:
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "stop"
    else:
        assert "the server is stopping" in json.loads(events[-2])["error"]["message"]


def test_two_models_side_by_side(serve: Serve) -> None:
    server = serve(one=ScriptedEngine("first"), two=ScriptedEngine("second"))
    cards = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["one", "two"]
    for name, text in (("one", "first"), ("two", "second")):
        answer = httpx.post(server.url + CHAT, json=ASK | {"model": name}).json()
        assert answer["model"] == name
        assert answer["choices"][0]["message"]["content"] == text


def test_a_tokenizer_without_a_chat_template_still_completes(
    serve: Serve, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["chat_template"]
    path.write_text(json.dumps(config), encoding="utf-8")
    server = serve(tiny=ScriptedEngine("x"))

    def replace() -> None:
        service: Service = server.service
        service.add("bare", ScriptedEngine("y"), Tokenizer.load(tmp_path))  # type: ignore[arg-type]
        done.set()

    done = threading.Event()
    server.call(replace)
    assert done.wait(5)
    response = httpx.post(server.url + CHAT, json=ASK | {"model": "bare"})
    assert response.status_code == 400
    assert "has no chat template" in response.json()["error"]["message"]
    body = {"model": "bare", "prompt": "a"}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
