"""Provides a server for one test, and one that all tests of a file share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from answer_forms import USER, Ask
from live_servers import LiveServer, ScriptedEngine, Serve, random_engine, running_server, serve
from openai_clients import connect

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

__all__ = ["serve", "tiny"]


@pytest.fixture(scope="module")
def tiny(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """Serves a random model for all tests of a file."""
    settings = ServerSettings(port=0, max_body_bytes=100_000, max_new_tokens=200)
    with running_server({"tiny": random_engine(tokenizer)}, tokenizer, settings) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[tuple[str, ScriptedEngine]]:
    """Gives the address and the engine of a model that says yes to all tests of a file."""
    engine = ScriptedEngine("yes")
    with running_server({"tiny": engine}, tokenizer, ServerSettings(port=0)) as server:
        yield server.url, engine


@pytest.fixture
def client(tiny: LiveServer) -> openai.OpenAI:
    return connect(tiny)


@pytest.fixture
def scripted(serve: Serve) -> Callable[..., tuple[openai.OpenAI, ScriptedEngine]]:
    """A client of a model that says `text`."""

    def start(text: str, **options) -> tuple[openai.OpenAI, ScriptedEngine]:
        engine = ScriptedEngine(text, **options)
        return connect(serve(tiny=engine)), engine

    return start


@pytest.fixture(scope="module")
def roomy(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """Serves a random model with room for 2,000 tokens."""
    settings = ServerSettings(port=0, max_new_tokens=800)
    engine = random_engine(tokenizer, context=2000)
    with running_server({"tiny": engine}, tokenizer, settings) as live:
        yield live


@pytest.fixture
def roomy_client(roomy: LiveServer) -> openai.OpenAI:
    return connect(roomy)


@pytest.fixture
def ask_for(roomy: LiveServer) -> Ask:
    """ask_for(field=…): the first choice of an answer, or its error."""

    def call(path: str = "chat/completions", **body: Any) -> Any:
        start: dict[str, Any] = {"model": "tiny", "max_tokens": 300, "seed": 4}
        start |= {"messages": USER} if path.startswith("chat") else {"prompt": "x"}
        answer = httpx.post(f"{roomy.url}/v1/{path}", json=start | body, timeout=60).json()
        return answer.get("error") or answer["choices"][0]

    return call
