"""Pairs, labelled answers and prompts in the forms of TRL, LLaMA-Factory and Anthropic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minimind.data.chat_dialects import (
    ALPACA_KEYS,
    ASKED,
    CHAT_REFUSED,
    NO_MEDIA,
    SAID,
    SHARED_KEYS,
    conversation_dialects,
    read_alpaca,
    read_completion,
    read_question,
    read_shared,
    read_side,
)
from minimind.data.dialects import OWN, Data, Dialect, first_turn, has_turns
from minimind.data.jsonl import RowProblem
from minimind.data.row_keys import KeyTable, Refusal, choose
from minimind.data.turns import Turn, read_turns

_SIDES = ("chosen", "rejected")
_SIDE_KEYS = {"chosen": "the better answer", "rejected": "the worse one"}
_LISTS = ("conversations", "messages")
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _read_own_pair(data: Data, unread: set[str]) -> Data:
    if not all(side in data for side in _SIDES):
        return data  # the format says so, with the keys that there are
    sides = {side: read_turns(data[side], f'"{side}"', unread) for side in _SIDES}
    return {**read_shared(data), **sides}


def _with_prompt(data: Data, prompt: list[Turn], unread: set[str]) -> Data:
    """Puts the prompt before both sides, unless they repeat it themselves. Raises RowProblem where
    they begin with another one."""
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


def _read_prompt_pair(data: Data, unread: set[str]) -> Data:
    for key in _LISTS:
        # UltraFeedback's repeat the chosen side.
        if data.get(key) and data[key] != data.get("chosen"):
            raise RowProblem(f'"prompt" and "{key}" both: keep the prompt in one place')
    prompt = data["prompt"]
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman:"):
        turns = _transcript(prompt, "prompt")
        if turns[-1] == {"role": "assistant", "content": ""}:
            turns.pop()
        return _with_prompt(data, turns, unread)
    return _with_prompt(data, read_side(data, "prompt", "user", unread), unread)


def _read_list_pair(data: Data, unread: set[str]) -> Data:
    key = next(key for key in _LISTS if key in data)
    return _with_prompt(data, read_side(data, key, "user", unread), unread)


def _read_alpaca_pair(data: Data, unread: set[str]) -> Data:
    return _with_prompt(data, read_question(data), unread)


def _read_transcripts(data: Data, unread: set[str]) -> Data:
    return {**read_shared(data), **{side: _transcript(data[side], side) for side in _SIDES}}


def _transcript(text: object, side: str) -> list[Turn]:
    if not isinstance(text, str):
        raise RowProblem(f'"{side}" is no string')
    before, *parts = _SPEAKER.split(f"\n\n{text.lstrip()}")
    if before.strip() or not parts:
        raise RowProblem(
            f'"{side}" is an answer without its prompt: give the row a "prompt", or write a '
            "dialogue of Human: and Assistant: parts"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _pair_keys(*used: Mapping[str, str]) -> KeyTable:
    names = {key: what for part in (*used, _SIDE_KEYS) for key, what in part.items()}
    refused = NO_MEDIA
    if "prompt" not in names:
        other = Refusal("a conversation beside the pair: keep the prompt in one place")
        refused = NO_MEDIA | dict.fromkeys((*_LISTS, "prompt"), other)
    return KeyTable("", names, {key: why for key, why in refused.items() if key not in names})


def _is_pair(data: Mapping[str, Any]) -> bool:
    return "chosen" in data or "rejected" in data


def _is_list_pair(key: str, speaker: str) -> Any:
    """Whether the prompt is a list of turns that name their speaker so."""
    return lambda data: (
        _is_pair(data)
        and (
            has_turns(data.get(key), speaker)
            and not (isinstance(data.get("chosen"), list) and data.get("prompt") is not None)
        )
    )


def _is_text_pair(data: Mapping[str, Any]) -> bool:
    return _is_pair(data) and isinstance(data.get("chosen"), str) and "prompt" not in data


PREFERENCE_DIALECTS = (
    Dialect(
        "llama-factory", "ShareGPT turns with chosen and rejected",
        '{"conversations": [{"from": "human", "value": "…"}], "chosen": {"from": "gpt", …}, '
        '"rejected": {…}}',
        _pair_keys({"conversations": "the prompt"}, SHARED_KEYS),
        _is_list_pair("conversations", "from"), _read_list_pair,
    ),
    Dialect(
        "llama-factory", "turns with chosen and rejected",
        '{"conversations": [{"role": "user", "content": "…"}], "chosen": {"role": "assistant", '
        '…}, "rejected": {…}}',
        _pair_keys({"conversations": "the prompt"}, SHARED_KEYS),
        _is_list_pair("conversations", "role"), _read_list_pair,
    ),
    Dialect(
        "llama-factory", "OpenAI's messages with chosen and rejected",
        '{"messages": [{"role": "user", "content": "…"}], "chosen": {"role": "assistant", …}, '
        '"rejected": {…}}',
        _pair_keys({"messages": "the prompt"}, SHARED_KEYS),
        _is_list_pair("messages", "role"), _read_list_pair,
    ),
    Dialect(
        "trl", "TRL's prompt, chosen and rejected",
        '{"prompt": "…" or [turns], "chosen": "…" or [turns], "rejected": "…" or [turns]}',
        _pair_keys({"prompt": "a text of the user, or turns"}, SHARED_KEYS),
        lambda data: "prompt" in data and _is_pair(data), _read_prompt_pair,
    ),
    Dialect(
        "alpaca", "Alpaca with chosen and rejected",
        '{"instruction": "…", "input": "…", "chosen": "…", "rejected": "…"}',
        _pair_keys(ALPACA_KEYS),
        lambda data: any(key in data for key in ASKED) and _is_pair(data), _read_alpaca_pair,
    ),
    Dialect(
        "hh-rlhf", "dialogues of Human: and Assistant:",
        '{"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}',
        _pair_keys({}), _is_text_pair, _read_transcripts,
    ),
    Dialect(
        OWN, "the project's own form (TRL's implicit prompt)",
        '{"chosen": [turns], "rejected": [turns]}', _pair_keys(SHARED_KEYS), _is_pair,
        _read_own_pair,
    ),
)  # fmt: skip


_LABELS = {"label": "whether the last answer is a good one", "kto_tag": "the same"}
_UNPAIRED_REFUSED = {
    key: why for key, why in CHAT_REFUSED.items() if key not in ("label", "kto_tag")
}


def _with_label(data: Data, read: Data) -> Data:
    label = choose({key: data[key] for key in _LABELS if key in data}, tuple(_LABELS))
    return read if label is None and "label" not in data else {**read, "label": label}


def _is_labelled(data: Mapping[str, Any]) -> bool:
    return any(key in data for key in _LABELS)


UNPAIRED_DIALECTS = (
    *conversation_dialects(_LABELS, _UNPAIRED_REFUSED, _with_label, tail=', "label": true'),
    Dialect(
        "alpaca", "Alpaca with a label",
        '{"instruction": "…", "input": "…", "output": "…", "label": true}',
        KeyTable("", ALPACA_KEYS | dict.fromkeys(SAID, "the answer") | _LABELS, _UNPAIRED_REFUSED),
        lambda data: any(key in data for key in ASKED) and _is_labelled(data),
        lambda data, unread: _with_label(data, read_alpaca(data, unread)),
    ),
    Dialect(
        "trl", "TRL's prompt, completion and label",
        '{"prompt": "…" or [turns], "completion": "…" or [turns], "label": true}',
        KeyTable("", {"prompt": "a text of the user, or turns",
                      "completion": "a text of the assistant, or turns", **SHARED_KEYS, **_LABELS},
                 _UNPAIRED_REFUSED),
        lambda data: "prompt" in data and "completion" in data,
        lambda data, unread: _with_label(data, read_completion(data, unread)),
    ),
)  # fmt: skip


_PROMPT_KEYS = {"gt": "the right answer", "answer": "the same"}
_PROMPT_LISTS = ("conversations", "messages", "prompt")
_CONSUMED = {*SHARED_KEYS, *_PROMPT_LISTS}


def _hand_on(data: Data, read: Data) -> Data:
    """What rewards may look at: everything that the conversation was not made of."""
    return {**{key: value for key, value in data.items() if key not in _CONSUMED}, **read}


def _read_trl_prompt(data: Data, unread: set[str]) -> Data:
    prompt = read_side(data, "prompt", "user", unread)
    return _hand_on(data, {**read_shared(data), "conversations": prompt})


def _read_alpaca_prompt(data: Data, unread: set[str]) -> Data:
    rest = {key: value for key, value in data.items() if key not in ALPACA_KEYS}
    return _hand_on(rest, {**read_shared(data), "conversations": read_question(data)})


PROMPT_DIALECTS = (
    *conversation_dialects(_PROMPT_KEYS, NO_MEDIA, _hand_on, hands_on=True, tail=', "gt": "…"'),
    Dialect(
        "trl", "TRL's prompt", '{"prompt": "…" or [turns], "answer": "…"}',
        KeyTable("", {"prompt": "a text of the user, or turns", **SHARED_KEYS, **_PROMPT_KEYS},
                 NO_MEDIA, hands_on=True),
        lambda data: "prompt" in data, _read_trl_prompt,
    ),
    Dialect(
        "alpaca", "Alpaca's or a question with its answer",
        '{"instruction" or "question": "…", "input": "…", "answer": "…"}',
        KeyTable("", ALPACA_KEYS | _PROMPT_KEYS, NO_MEDIA, hands_on=True),
        lambda data: any(first_turn(data.get(key)) for key in ASKED), _read_alpaca_prompt,
    ),
)  # fmt: skip
