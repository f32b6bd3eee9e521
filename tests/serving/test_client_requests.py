"""Whole requests, and paths, as known clients send them."""

from __future__ import annotations

import httpx2 as httpx
import pytest
from live_servers import ScriptedEngine

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
ASK = {"messages": [USER], "max_tokens": 4}


@pytest.fixture
def url(shared: tuple[str, ScriptedEngine]) -> str:
    return shared[0]


def test_paths_are_as_clients_like(url: str) -> None:
    """With slashes that a base address brought along, and without /v1 as llama.cpp has them."""
    for path in (f"{CHAT}/", f"/{CHAT}", "/v1//chat/completions//", "/chat/completions"):
        assert httpx.post(url + path, json=ASK).status_code == 200
    assert httpx.post(f"{url}/responses", json={"input": "hi"}).json()["object"] == "response"
    assert httpx.get(f"{url}/models").json() == httpx.get(f"{url}/v1/models").json()
    assert httpx.get(f"{url}/v1/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/models/").json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{url}/version").json()["version"]
    for path in ("/health", "/v1/models", "/v1/models/tiny"):
        head = httpx.head(url + path)
        assert (head.status_code, head.content) == (200, b"")


def test_requests_of_open_webui_and_litellm(url: str) -> None:
    """In the shape of Open WebUI 0.6 (a chat, a title) and of LiteLLM's openai-compatible
    provider."""
    bodies = [
        {
            "stream": True, "model": "tiny", "messages": [USER], "temperature": 0.8, "top_k": 40,
            "top_p": 0.9, "min_p": 0.0, "frequency_penalty": 0, "presence_penalty": 0, "seed": 0,
            "repeat_penalty": 1.1, "max_tokens": 128, "stop": ["</s>"],
            "stream_options": {"include_usage": True}, "logit_bias": {}, "reasoning_effort": "low",
        },
        {
            "model": "tiny", "messages": [USER], "stream": False, "max_completion_tokens": 1000,
            "metadata": {"task": "title_generation", "chat_id": "c"},
        },
        {
            "model": "tiny", "messages": [USER], "stream": True, "user": "u", "n": 1,
            "stream_options": {"include_usage": True}, "max_retries": 0, "extra_body": {},
        },
    ]  # fmt: skip
    for body in bodies:
        response = httpx.post(url + CHAT, json=body)
        assert response.status_code == 200, response.text
        assert ("data: [DONE]" in response.text) is body["stream"]
    assert response.headers["x-ignored-fields"] == "max_retries,extra_body"
