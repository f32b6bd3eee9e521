"""Holds one conversation in our own form, and its parts, for tests of other forms."""

from __future__ import annotations

import json
from typing import Any

from minimind.data.token_cache import TokenCache

Data = dict[str, Any]

CALL = {"name": "weather", "arguments": {"town": "塔恩", "days": 2}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2+2?"}
FOUR, FIVE = ({"role": "assistant", "content": text} for text in "45")
TALK = [
    SYSTEM,
    {"role": "user", "content": "Weather in 塔恩?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rain": true}'},
    {"role": "assistant", "content": "It rains.", "reasoning_content": "The tool says so."},
]
OWN_TALK = {"conversations": [{**SYSTEM, "tools": TOOLS}, *TALK[1:]]}
OPENAI_CALL = {"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}


def text(content: str) -> list[Data]:
    return [{"type": "text", "text": content[:2]}, {"type": "text", "text": content[2:]}]


def tokens(cache: TokenCache) -> list[tuple[list[int], list[bool]]]:
    found = []
    for number in range(cache.num_documents):
        is_target = cache.is_target(number)
        assert is_target is not None
        found.append((cache.tokens(number).tolist(), is_target.tolist()))
    return found


HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
