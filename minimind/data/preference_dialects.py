"""Reads preference pairs in the forms of TRL, OpenAI, LLaMA-Factory and Anthropic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minimind.data.chat_dialects import (
    ALPACA_KEYS,
    PROMPT_KEY,
    SHARED_KEYS,
    build_keys,
    is_alpaca,
    read_question,
    read_shared,
    read_side,
    spells_turns,
    unpack_turns,
)
from minimind.data.dialects import OWN, Data, Dialect, as_text, has_turns
from minimind.data.jsonl import RowProblem
from minimind.data.row_keys import KeyTable, Refusal
from minimind.data.row_refusals import NO_MEDIA, PAIR_REFUSED
from minimind.data.transcripts import read_transcript
from minimind.data.turns import Turn, read_turns

_SIDES = ("chosen", "rejected")
_SIDE_KEYS = {"chosen": "the better answer", "rejected": "the worse answer"}
_LISTS = ("conversations", "messages")
_TWO = Refusal("a conversation beside the pair: keep the prompt in one place")
_OPENAI_KEYS = {"preferred_output": "the better answer", "non_preferred_output": "the worse answer"}
_OPENAI_INPUT = KeyTable(
    " of input", {"messages": "the prompt", "tools": SHARED_KEYS["tools"]}, dict(NO_MEDIA)
)
_SCORE = re.compile("score|rating|reward|grade|quality")


def _read_own_pair(data: Data, unread: set[str]) -> Data:
    if not all(side in data for side in _SIDES):
        return data  # the format reports the missing key
    _check_scores(data)
    read = read_shared(data)
    for side in _SIDES:
        what = f'"{side}"'
        read[side] = read_turns(unpack_turns(data[side], what), what, unread)
    return data if all(data.get(key) is value for key, value in read.items()) else read


def _check_scores(data: Data) -> None:
    """Raises RowProblem where the row's own scores rate the rejected answer higher."""
    for key, better in data.items():
        if "chosen" not in key or not _SCORE.search(key):
            continue
        other = key.replace("chosen", "rejected")
        worse = data.get(other)
        if not isinstance(better, int | float) or not isinstance(worse, int | float):
            continue
        if better < worse:
            raise RowProblem(
                f'"{key}" is {better} and "{other}" is {worse}: by them the rejected answer is the '
                "better one; exchange the two, or leave the row out"
            )


def _with_prompt(data: Data, prompt: list[Turn], unread: set[str]) -> Data:
    """Puts the prompt before both answers, unless they repeat it. Raises RowProblem where they
    begin with another prompt."""
    _check_scores(data)
    _check_repeated(data, prompt)
    read = read_shared(data)
    for side in _SIDES:
        turns = read_side(data, side, "assistant", unread)
        if turns[: len(prompt)] == prompt:
            read[side] = turns
            continue
        first = turns[0].get("role") if isinstance(turns[0], dict) else None
        if first in ("user", "system"):
            raise RowProblem(
                f'"{side}" begins with a turn of the {first}, and not with the same prompt as the '
                "row: leave the prompt out of it, or make them equal"
            )
        read[side] = [*prompt, *turns]
    return read


def _check_repeated(data: Data, prompt: list[Turn]) -> None:
    """Raises RowProblem where both answers' texts begin with the prompt's text."""
    asked = prompt[-1].get("content") if isinstance(prompt[-1], dict) else None
    if not isinstance(asked, str) or len(asked.split()) < 2:
        return
    rests = [text.lstrip().removeprefix(asked.strip()) for text in map(data.get, _SIDES)
             if isinstance(text, str) and text.lstrip().startswith(asked.strip())]  # fmt: skip
    if len(rests) == len(_SIDES) and all(not rest[:1].strip() for rest in rests):
        raise RowProblem(
            '"chosen" and "rejected" begin with the prompt again, which stands before them: leave '
            "it out of both"
        )


def _read_prompt_pair(data: Data, unread: set[str]) -> Data:
    for key in _LISTS:
        # UltraFeedback's "messages" repeat the chosen side.
        if data.get(key) and data[key] != data.get("chosen"):
            raise RowProblem(f'"prompt" and "{key}" both: keep the prompt in one place')
    return _with_prompt(data, read_side(data, "prompt", "user", unread), unread)


def _read_openai_pair(data: Data, unread: set[str]) -> Data:
    given = data["input"]
    if not isinstance(given, dict):
        raise RowProblem('"input" is no object with "messages"')
    _OPENAI_INPUT.check(given, unread)
    pair = {"prompt": given.get("messages"), "tools": given.get("tools")}
    pair |= {side: data.get(key) for side, key in zip(_SIDES, _OPENAI_KEYS, strict=True)}
    return _with_prompt(pair, read_side(pair, "prompt", "user", unread), unread)


def _read_transcripts(data: Data, unread: set[str]) -> Data:
    if any(data.get(side) is None for side in _SIDES):
        return data  # the format reports it
    _check_scores(data)
    read = read_shared(data)
    for side in _SIDES:
        what = f'"{side}"'
        read[side] = read_transcript(as_text(data[side], what), what)
    return read


def _pair_keys(*used: Mapping[str, str]) -> KeyTable:
    return build_keys(_SIDE_KEYS, SHARED_KEYS, *used, refused={**PAIR_REFUSED, "prompt": _TWO})


def _prompt_pair_keys() -> KeyTable:
    used = {**_SIDE_KEYS, **PROMPT_KEY, **SHARED_KEYS}
    return KeyTable("", used, {key: why for key, why in PAIR_REFUSED.items() if key not in used})


def _is_pair(data: Mapping[str, Any]) -> bool:
    return "chosen" in data or "rejected" in data


def _list_dialect(key: str, speaker: str, title: str, prompt: str, answer: str) -> Dialect:
    """Builds the dialect of LLaMA-Factory's pairs: a list of turns under `key`, and one more turn
    as each answer."""
    return Dialect(
        name="llama-factory",
        title=f"{title} with chosen and rejected",
        example=f'{{"{key}": [{prompt}], "chosen": {answer}, "rejected": {{…}}}}',
        keys=_pair_keys({key: "the prompt"}),
        matches=lambda data: _is_pair(data) and "prompt" not in data and (
            has_turns(data.get(key), speaker)
        ),
        convert=lambda data, unread: _with_prompt(
            data, read_side(data, key, "user", unread), unread
        ),
    )  # fmt: skip


_TOLD = ('{"from": "human", "value": "…"}', '{"from": "gpt", "value": "…"}')
_SAID = ('{"role": "user", "content": "…"}', '{"role": "assistant", "content": "…"}')
PREFERENCE_DIALECTS = (
    _list_dialect("conversations", "from", "ShareGPT's turns", *_TOLD),
    _list_dialect("conversations", "role", "turns", *_SAID),
    _list_dialect("messages", "role", "OpenAI's messages", *_SAID),
    Dialect(
        name="openai",
        title="OpenAI's preferred and non-preferred output",
        example='{"input": {"messages": [turns]}, "preferred_output": [turns], '
        '"non_preferred_output": [turns]}',
        keys=build_keys(
            {"input": "the prompt and its tools", **_OPENAI_KEYS}, refused=PAIR_REFUSED
        ),
        matches=lambda data: "input" in data and "preferred_output" in data,
        convert=_read_openai_pair,
    ),
    Dialect(
        name="trl",
        title="TRL's prompt, chosen and rejected",
        example='{"prompt": "…" or [turns], "chosen": "…" or [turns], "rejected": "…" or [turns]}',
        keys=_prompt_pair_keys(),
        matches=lambda data: "prompt" in data and _is_pair(data),
        convert=_read_prompt_pair,
    ),
    Dialect(
        name="alpaca",
        title="Alpaca with chosen and rejected",
        example='{"instruction": "…", "input": "…", "chosen": "…", "rejected": "…"}',
        keys=_pair_keys(ALPACA_KEYS),
        matches=lambda data: is_alpaca(data) and _is_pair(data),
        convert=lambda data, unread: _with_prompt(data, read_question(data), unread),
    ),
    Dialect(
        name="hh-rlhf",
        title="dialogues of Human: and Assistant:",
        example='{"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}',
        keys=_pair_keys(),
        matches=lambda data: (
            _is_pair(data)
            and (isinstance(text := data.get("chosen"), str) and not spells_turns(text))
        ),
        convert=_read_transcripts,
    ),
    Dialect(
        name=OWN,
        title="the project's own form (TRL's implicit prompt)",
        example='{"chosen": [turns], "rejected": [turns]}',
        keys=_pair_keys(),
        matches=_is_pair,
        convert=_read_own_pair,
    ),
)
