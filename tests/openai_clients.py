"""Connects OpenAI's official client to a server."""

from __future__ import annotations

import openai
from live_servers import LiveServer


def connect(server: LiveServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
