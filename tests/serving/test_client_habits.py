"""What clients in the wild send: values that mean nothing, fields of other servers, no model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from live_servers import LiveServer, ScriptedEngine, Serve

from minimind.data.tokenizer import Tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}
ASK = {"messages": [USER], "max_tokens": 4}


@pytest.fixture
def url(shared: tuple[str, ScriptedEngine]) -> str:
    return shared[0]


@pytest.fixture
def engine(shared: tuple[str, ScriptedEngine]) -> ScriptedEngine:
    """What it was asked before is forgotten."""
    shared[1].requests.clear()
    return shared[1]


def ask(url: str, path: str = CHAT, **change: Any) -> httpx.Response:
    start = ASK if path == CHAT else {"prompt": "a"}
    return httpx.post(url + path, json=start | change)


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": None}, "top_k", 0),
        ({"top_p": 0}, "top_k", 1),
        ({"top_p": None}, "top_p", 1.0),
        ({"min_p": 0}, "min_p", 0.0),
        ({"max_tokens": -1}, "max_new_tokens", None),
        ({"max_tokens": None, "max_completion_tokens": 7}, "max_new_tokens", 7),
        ({"stop": ""}, "stop", ()),
        ({"stop": []}, "stop", ()),
        ({"stop": ["a", "", "b"]}, "stop", ("a", "b")),
        ({"temperature": None}, "temperature", 1.0),
        ({"seed": -1}, "seed", None),
        ({"seed": None}, "seed", None),
        ({"presence_penalty": None, "frequency_penalty": 0}, "presence_penalty", 0.0),
        ({"repeat_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"logit_bias": {}, "best_of": None}, "top_k", 0),
        ({"n": None, "stream_options": None, "tools": [], "tool_choice": "auto"}, "top_k", 0),
        ({"functions": [], "function_call": "none", "audio": None}, "top_k", 0),
        ({"max_tokens": None, "n_predict": 7}, "max_new_tokens", 7),
        ({"n_predict": 7}, "max_new_tokens", 4),
        ({"max_tokens": None, "n_predict": -1}, "max_new_tokens", None),
        ({"max_tokens": None, "n_predict": -2}, "max_new_tokens", None),
    ],
)
def test_values_that_mean_off(
    url: str, engine: ScriptedEngine, change: dict[str, Any], name: str, value: Any
) -> None:
    response = ask(url, **change)
    assert response.status_code == 200, response.text
    (request,) = engine.requests
    if name == "max_new_tokens" and value is None:
        value = engine.max_sequence - len(request.prompt_ids)
    assert getattr(request.params, name) == value


@pytest.mark.parametrize(
    ("limit", "made"),
    [
        ({}, 16),
        ({"max_tokens": None}, 16),
        ({"max_tokens": -1}, None),
        ({"n_predict": 5}, 5),
        ({"n_predict": -1}, None),
        ({"n_predict": 5, "max_tokens": 6}, 6),
    ],
)
def test_how_far_a_completion_goes(
    url: str, engine: ScriptedEngine, limit: dict[str, Any], made: int | None
) -> None:
    assert ask(url, TEXT, **limit).status_code == 200
    (request,) = engine.requests
    room = engine.max_sequence - len(request.prompt_ids)
    assert request.params.max_new_tokens == (made or room)


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
def test_a_server_of_one_model_needs_no_name(serve: Serve, model: dict[str, Any]) -> None:
    one = serve(tiny=ScriptedEngine("yes"))
    assert ask(one.url, **model).json()["model"] == "tiny"
    two = serve(first=ScriptedEngine("a"), second=ScriptedEngine("b"))
    error = ask(two.url, **model).json()["error"]
    assert error["message"] == "model is missing; the models are first, second"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "user", "content": None},
        {"role": "user", "content": []},
        {"role": "user"},
        {"role": "user", "content": [{"type": "text", "text": ""}]},
    ],
)
def test_an_empty_message_is_one(
    url: str, engine: ScriptedEngine, tokenizer: Tokenizer, message: dict[str, Any]
) -> None:
    assert ask(url, messages=[message]).status_code == 200
    prompt = tokenizer.decode(engine.requests[0].prompt_ids, skip_special=False)
    assert prompt.startswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")


def test_messages_as_other_clients_write_them(
    url: str, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    """An answer with all the fields that the openai client writes, the names of others."""
    call = {"id": "c", "index": 0, "function": {"name": "f", "arguments": ""}}
    answer = {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": [call], "reasoning": "hm",
    }  # fmt: skip
    parts = [{"type": "input_text", "text": "o", "cache_control": {"type": "ephemeral"}}, "k"]
    part = {"type": "text", "text": "1"}
    messages = [
        {"role": "developer", "content": "be good", "name": "boss"},
        {"role": "user", "content": parts, "name": "Ann"},
        answer,
        {"role": "tool", "tool_call_id": "c", "name": "f", "content": [part]},
    ]  # fmt: skip
    response = ask(url, messages=messages)
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers
    prompt = tokenizer.decode(engine.requests[0].prompt_ids)
    assert "system\nbe good" in prompt
    assert "user\nok" in prompt
    assert '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}' in prompt
    assert "<tool_response>\n1\n</tool_response>" in prompt


def test_results_go_to_their_calls(url: str, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    """They may come in any order; without ids they stay in their own."""
    calls = [{"id": id, "function": {"name": id, "arguments": "{}"}} for id in ("a", "b", "c")]
    asked = [USER, {"role": "assistant", "tool_calls": calls}]
    for ids, order in (("cab", "abc"), ("ba", "ab"), ("cx", "cx")):
        results = [{"role": "tool", "tool_call_id": id, "content": f"<{id}>"} for id in ids]
        assert ask(url, messages=[*asked, *results]).status_code == 200
        prompt = tokenizer.decode(engine.requests[-1].prompt_ids)
        assert [prompt.index(f"<{id}>") for id in order] == sorted(
            prompt.index(f"<{id}>") for id in order
        )


def test_a_prompt_that_is_cut(url: str, engine: ScriptedEngine) -> None:
    """From the left, for what is continued stands at the right."""
    ids, context = list(range(100, 200)), engine.max_sequence
    for asked, kept in ((3, 3), (100, 100), (500, 100), (-1, 100)):
        body = {"prompt": ids, "truncate_prompt_tokens": asked, "echo": True}
        response = ask(url, TEXT, **body)
        assert response.status_code == 200, response.text
        assert list(engine.requests[-1].prompt_ids) == ids[-kept:]
        whole = ask(url, TEXT, prompt=ids[-kept:], echo=True).json()["choices"][0]["text"]
        assert response.json()["choices"][0]["text"] == whole
    ask(url, TEXT, prompt=ids, truncate_prompt_tokens=4, truncation_side="right")
    assert list(engine.requests[-1].prompt_ids) == ids[:4]
    for limit, room in (({"max_tokens": 9}, 9), ({"max_tokens": -1}, 1), ({}, 16)):
        body = {"prompt": [100] * (context + 50), "truncate_prompt_tokens": -1}
        assert ask(url, TEXT, **body, **limit).status_code == 200
        assert len(engine.requests[-1].prompt_ids) == context - room
    long = [USER | {"content": "hi " * context}]
    assert ask(url, messages=long).json()["error"]["code"] == "context_length_exceeded"
    assert ask(url, messages=long, truncate_prompt_tokens=-1).status_code == 200
    assert len(engine.requests[-1].prompt_ids) == context - 4


def test_the_template_s_own_fields(url: str) -> None:
    """Ours does not read verbosity, which is said."""
    for path, fields in (
        (CHAT, {"verbosity": "low"}),
        ("/v1/responses", {"text": {"verbosity": "high"}}),
    ):
        body = {"messages": [USER]} if path == CHAT else {"input": "hi"}
        response = httpx.post(url + path, json=body | fields)
        assert response.status_code == 200
        assert response.headers["x-ignored-fields"] == "verbosity"
    assert "x-ignored-fields" not in ask(url, verbosity="medium").headers


def test_best_of_as_many_as_are_given(url: str) -> None:
    assert len(ask(url, TEXT, n=2, best_of=2).json()["choices"]) == 2
    for fields in ({"n": 2, "best_of": 3}, {"best_of": 2}):
        error = ask(url, TEXT, **fields).json()["error"]
        assert error["message"].endswith(": send `n` alone and choose")
        assert error["param"] == "best_of"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_sums_with_each_chunk(url: str, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = ask(url, path, stream=True, stream_options=options)
    events = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
    counts = [json.loads(event)["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] > 0


def test_what_nothing_knows_is_named(url: str) -> None:
    messages = [USER | {"weight": 0}, USER | {"weight": 1}]
    response = ask(
        url,
        messages=messages,
        num_ctx=2048,
        stream_options={"every": 3},
        chat_template_kwargs={"colour": "red", "enable_thinking": False},
        **{"a\r\nSet-Cookie: x": 1},
    )
    assert response.status_code == 200
    assert set(response.headers["x-ignored-fields"].split(",")) == {
        "messages[].weight",
        "num_ctx",
        "stream_options.every",
        "chat_template_kwargs.colour",
        "a??Set-Cookie??x",
    }
    assert "set-cookie" not in response.headers
    assert "x-ignored-fields" not in ask(url, user="ann", store=True, metadata={"a": "b"}).headers


def test_template_variables_by_name(serve: Serve, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The original asks for open_thinking where ours asks for enable_thinking."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n{{ open_thinking }} {{ enable_thinking }} {{ colour }}"
    )
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    own = Tokenizer.load(tmp_path)
    engine = ScriptedEngine("yes")
    server = serve(tiny=engine)
    server.service.models["own"] = _with_tokenizer(server, own)
    for options, expected in (
        ({}, "False False "),
        ({"open_thinking": True}, "True True "),
        ({"enable_thinking": True, "colour": "red"}, "True True red"),
    ):
        assert ask(server.url, model="own", chat_template_kwargs=options).status_code == 200
        assert own.decode(engine.requests[-1].prompt_ids).endswith("assistant\n" + expected)
    error = ask(server.url, chat_template_kwargs={"messages": []}).json()["error"]
    assert error["message"] == "chat_template_kwargs: messages stands beside it, not in it"


def _with_tokenizer(server: LiveServer, tokenizer: Tokenizer) -> Any:
    return replace(server.service.models["tiny"], name="own", tokenizer=tokenizer, adapter="x")


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}])
def test_a_call_without_arguments(
    url: str, engine: ScriptedEngine, tokenizer: Tokenizer, arguments: dict[str, Any]
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f"} | arguments}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    assert ask(url, messages=messages).status_code == 200
    prompt = tokenizer.decode(engine.requests[0].prompt_ids)
    assert '{"name": "f", "arguments": {}}' in prompt


def test_stops_by_token_and_none_at_all(
    url: str, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    own = {tokenizer.eos_id, tokenizer.pad_id}
    for change, stops in (
        ({}, own),
        ({"stop_token_ids": [70]}, own | {70}),
        ({"ignore_eos": True}, set()),
    ):
        assert ask(url, **change).status_code == 200
        assert set(engine.requests[-1].stop_ids) == stops
