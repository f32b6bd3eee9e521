"""A tokenizer, a server of its own for a test, and one that a file's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from live_servers import LiveServer, Serve, random_engine, running_server

from minimind.data.sample_text import load_sample_tokenizer
from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_sample_tokenizer()


@pytest.fixture
def serve(tokenizer: Tokenizer) -> Iterator[Serve]:
    """serve(name=engine, …, settings=…): a server that ends with the test."""
    with ExitStack() as stack:

        def start(settings: ServerSettings | None = None, **engines: object) -> LiveServer:
            chosen = settings or ServerSettings(port=0)
            return stack.enter_context(running_server(engines, tokenizer, chosen))

        yield start


@pytest.fixture(scope="module")
def tiny(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """One server over a random model for all tests of a file."""
    settings = ServerSettings(port=0, max_body_bytes=100_000, max_new_tokens=200)
    with running_server({"tiny": random_engine(tokenizer)}, tokenizer, settings) as server:
        yield server
