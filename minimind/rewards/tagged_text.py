"""Splits an assistant's text into thought, tool calls and answer."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from minimind.config.tags import CALL, END_CALL, END_THINK, THINK

_BLOCK = re.compile(f"{CALL}(.*?)({END_CALL}|$)", re.DOTALL)


def split_thought(text: str) -> tuple[str | None, str]:
    """Splits a text into the thought at its beginning (None without one) and the rest. An unclosed
    thought takes the whole text; text before a lone closing tag is a thought, as in the chat
    template."""
    text = text.lstrip()
    if not text.startswith(THINK) and END_THINK not in text:
        return None, text
    thought, _, rest = text.removeprefix(THINK).partition(END_THINK)
    return thought, rest


def answer_text(text: str) -> str:
    """Gives an assistant's text without its thought and tool calls, stripped. An unclosed block
    extends to the end."""
    return _BLOCK.sub("", split_thought(text)[1]).strip()


def read_calls(text: str) -> list[dict[str, Any] | None]:
    """Gives the tool calls after the thought, in order. A malformed call is None: not closed, or
    not a JSON object with a "name" and an object as "arguments"."""
    rest = split_thought(text)[1]
    blocks = list(_BLOCK.finditer(rest))
    calls = [_read_call(block[1]) if block[2] else None for block in blocks]
    num_closed = sum(bool(block[2]) for block in blocks)
    if rest.count(CALL) != len(blocks) or rest.count(END_CALL) != num_closed:
        calls.append(None)  # a tag too many
    return calls


def _read_call(text: str) -> dict[str, Any] | None:
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    return call if isinstance(call.get("arguments"), dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
