"""Reads prompts in the forms of OpenAI, ShareGPT, Alpaca and TRL. All other keys of a row are kept
for the rewards."""

from __future__ import annotations

from minimind.data.chat_dialects import (
    ALPACA_KEYS,
    PROMPT_KEY,
    SHARED_KEYS,
    build_keys,
    build_list_dialects,
    is_alpaca,
    read_question,
    read_shared,
    read_side,
)
from minimind.data.dialects import Data, Dialect
from minimind.data.row_refusals import NO_MEDIA

_CONSUMED = {*SHARED_KEYS, *PROMPT_KEY, "conversations", "messages"}


def _hand_on(data: Data, read: Data) -> Data:
    return {**{key: value for key, value in data.items() if key not in _CONSUMED}, **read}


def _read_prompt(data: Data, unread: set[str]) -> Data:
    turns = read_side(data, "prompt", "user", unread)
    return _hand_on(data, {**read_shared(data), "conversations": turns})


def _read_question(data: Data, unread: set[str]) -> Data:
    rest = {key: value for key, value in data.items() if key not in ALPACA_KEYS}
    return _hand_on(rest, {**read_shared(data), "conversations": read_question(data)})


PROMPT_DIALECTS = (
    *build_list_dialects(_hand_on, {}, NO_MEDIA, hands_on=True, tail=', "gt": "…"'),
    Dialect(
        name="trl",
        title="TRL's prompt",
        example='{"prompt": "…" or [turns], "answer": "…"}',
        keys=build_keys(PROMPT_KEY, SHARED_KEYS, refused=NO_MEDIA, hands_on=True),
        matches=lambda data: "prompt" in data,
        convert=_read_prompt,
    ),
    Dialect(
        name="alpaca",
        title="a question or instruction",
        example='{"question" or "instruction": "…", "input": "…", "answer": "…"}',
        keys=build_keys(ALPACA_KEYS, refused=NO_MEDIA, hands_on=True),
        matches=is_alpaca,
        convert=_read_question,
    ),
)
