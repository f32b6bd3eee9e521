"""Who may call a server without a key, and how long a prompt may be before it is tokenised."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live_servers import LiveServer

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.faults("a web page whose domain points to this machine (DNS rebinding)", "403")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_other_names_are_refused(tiny: LiveServer, host: str) -> None:
    response = httpx.get(tiny.url + "/v1/models", headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed_host" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost:1", "minimind:8000", "[::1]:8000", "10.0.0.7", "a.local"]
)
def test_names_of_this_machine_and_network(tiny: LiveServer, host: str) -> None:
    assert httpx.get(tiny.url + "/v1/models", headers={"Host": host}).status_code == 200


def test_a_key_or_the_flag_allows_any_name() -> None:
    assert ServerSettings(api_keys=("k",)).accepts_host("evil.example")
    assert ServerSettings(allowed_hosts=("my.site",)).accepts_host("My.Site:80")
    assert not ServerSettings(allowed_hosts=("my.site",)).accepts_host("evil.my.site")


@pytest.mark.faults("prompts of megabytes", "400 by their bytes, before they are tokenised")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 15_000}]}),
        (TEXT, {"prompt": "word " * 15_000}),
        ("/v1/embeddings", {"input": "word " * 15_000}),
        ("/v1/responses", {"input": "word " * 15_000}),
    ],
)
def test_long_prompts(
    tiny: LiveServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    lengths = []
    encode = Tokenizer.encode_batch

    def noted(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", noted)
    error = httpx.post(tiny.url + path, json=body | {"model": "tiny"}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "by its bytes" in error["message"]
    assert max(lengths, default=0) < 10_000


def test_a_text_has_at_least_so_many_tokens(tokenizer: Tokenizer) -> None:
    for text in ("", "a", " " * 1000, "word " * 1000, "中文" * 500, "\n" * 999):
        assert tokenizer.least_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.least_tokens("word " * 1000) > 100


def test_a_prompt_that_is_cut_may_be_longer(tiny: LiveServer) -> None:
    body = {"model": "tiny", "prompt": "word " * 2000, "max_tokens": 1, "truncate_prompt_tokens": 9}
    assert httpx.post(tiny.url + TEXT, json=body).json()["usage"]["prompt_tokens"] == 9
