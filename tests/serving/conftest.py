"""Provides a server for one test, and one that all tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_servers import LiveServer, random_engine, running_server, serve

from minimind.data.tokenizer import Tokenizer
from minimind.serving.settings import ServerSettings

__all__ = ["serve", "tiny"]


@pytest.fixture(scope="module")
def tiny(tokenizer: Tokenizer) -> Iterator[LiveServer]:
    """Serves a random model for all tests of a file."""
    settings = ServerSettings(port=0, max_body_bytes=100_000, max_new_tokens=200)
    with running_server({"tiny": random_engine(tokenizer)}, tokenizer, settings) as server:
        yield server
