"""Converts turns to the project's own keys and values: roles, reasoning, content parts, tool calls
and weights. chat_format checks everything else about a turn."""

from __future__ import annotations

import json
import operator
from typing import Any

from minimind.config.tags import END_THINK, THINK
from minimind.data.json_strings import check_json, parse_json, read_objects
from minimind.data.jsonl import RowProblem, json_type
from minimind.data.row_keys import choose
from minimind.data.turn_keys import (
    CALLS,
    FUNCTIONS,
    OWN_ROLES,
    PARTS,
    REASONING,
    ROLES,
    SHAREGPT_TURNS,
    TURNS,
    UNLEARNED,
    WEIGHTS,
)

Turn = dict[str, Any]

_OTHERS_ROLES = ("system", "user", "tool")
_CALL_ROLES = ("function_call", "tool_call")
_ARGUMENTS = ("arguments", "parameters")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_ABOUT_LEARNING = frozenset((*WEIGHTS, *UNLEARNED))
_TRANSLATED = frozenset(("from", "value", "function_call", *REASONING, *_ABOUT_LEARNING))


def read_turns(turns: object, what: str, unread: set[str]) -> Any:
    """Converts turns to the project's own keys and values; a value that needs no conversion, or is
    not a list, is returned unchanged. `what` names the turns in messages; unread keys are added to
    `unread`. Raises RowProblem."""
    if not isinstance(turns, list) or all(map(_is_own, turns)):
        return turns
    read = []
    calls: list[Turn] | None = None
    for number, turn in enumerate(turns, start=1):
        is_call = _is_call(turn)
        if isinstance(turn, dict):
            try:
                turn = _read_turn(turn, unread)
            except RowProblem as problem:
                raise RowProblem(f"turn {number} of {what}: {problem}") from None
        if is_call and calls is not None:
            calls += turn["tool_calls"]  # turns of one call each, side by side, are one turn
            continue
        calls = turn["tool_calls"] if is_call else None
        read.append(turn)
    return turns if all(map(operator.is_, read, turns)) else read


def _read_turn(turn: Turn, unread: set[str]) -> Turn:
    if _is_own(turn):
        return turn
    role, content = turn.get("role"), turn.get("content")
    is_sharegpt = "from" in turn and "role" not in turn
    (SHAREGPT_TURNS if is_sharegpt else TURNS).check(turn, unread)
    if is_sharegpt:
        role, content = turn["from"], turn.get("value")
    read = {key: value for key, value in turn.items() if key not in _TRANSLATED}
    if isinstance(role, str):
        role = role.strip().lower()
        read["role"] = ROLES.get(role, turn["from" if is_sharegpt else "role"])
    elif role is not None:
        read["role"] = role
    if content is not None:
        read["content"] = content
    reasoning = choose(turn, REASONING)
    if isinstance(content, list):
        read["content"], thought = _join_parts(content, unread)
        reasoning = choose({REASONING[0]: reasoning, "thinking": thought}, REASONING)
    calls = _read_calls(turn, role, read.get("content"), unread)
    if role in _CALL_ROLES:
        read["content"] = ""
    if calls:
        read["tool_calls"] = calls
    else:
        read.pop("tool_calls", None)
    add_reasoning(read, reasoning)
    _add_weight(read, turn)
    if calls and read.get("role") != "assistant":
        raise RowProblem(f'"tool_calls" of the role {read.get("role")!r}: only the assistant calls')
    return read


def _is_own(turn: object) -> bool:
    """Tells whether a turn needs no conversion: a project's role and a text, as most turns are."""
    return (
        isinstance(turn, dict)
        and len(turn) == 2
        and turn.get("role") in OWN_ROLES
        and isinstance(turn.get("content"), str)
    )


def _is_call(turn: object) -> bool:
    role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    return isinstance(role, str) and role.strip().lower() in _CALL_ROLES


def _join_parts(parts: list[Any], unread: set[str]) -> tuple[str, str | None]:
    """Gives the joined text of the content parts, and that of the reasoning parts or None."""
    texts, thoughts = [], []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict):
            raise RowProblem(
                f"content part {number} is {json_type(part)}: write the content as one string, or "
                'its parts as {"type": "text", "text": "…"}'
            )
        PARTS.check(part, unread)
        kind = part.get("type")
        text = part.get("text") if kind in _TEXT_PARTS else part.get("thinking", part.get("text"))
        if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
            raise RowProblem(
                f"content part {number} is of the type {json.dumps(kind)}, and only text is read: "
                "leave the row out, or write the part as text"
            )
        if not isinstance(text, str):
            raise RowProblem(f"the text of content part {number} is {json_type(text)}")
        (texts if kind in _TEXT_PARTS else thoughts).append(text)
    return "".join(texts), "".join(thoughts) or None


def _read_calls(turn: Turn, role: object, text: object, unread: set[str]) -> list[Turn]:
    """Gives a turn's tool calls, with arguments as objects. Raises RowProblem."""
    calls, what = turn.get("tool_calls") or [], '"tool_calls"'
    no_call = f"the text of a {role} is no JSON object with a name"
    if role in _CALL_ROLES:
        if not isinstance(text, str) or not text.lstrip().startswith(("{", "[")):
            raise RowProblem(no_call)
        calls, what = text, f"the text of a {role}"
    elif legacy := turn.get("function_call"):
        if calls:
            raise RowProblem('"function_call" and "tool_calls" both: keep one of them')
        calls, what = legacy, '"function_call"'
    if not calls:
        return []
    if isinstance(calls, str) and calls.strip():
        calls = parse_json(calls, what)
    if isinstance(calls, dict):
        calls = [calls]
    read = []
    for number, call in enumerate(read_objects(calls, what), start=1):
        try:
            read.append(_read_call(call, unread))
        except RowProblem as problem:
            raise RowProblem(f"tool call {number}: {problem}") from None
    if role in _CALL_ROLES and not read:
        raise RowProblem(no_call)
    return read


def _read_call(call: Turn, unread: set[str]) -> Turn:
    CALLS.check(call, unread)
    if call.get("type") not in (None, "function"):
        raise RowProblem(f"a tool call is of the type {json.dumps(call['type'])}, not function")
    inner = call.get("function")
    if inner is None:
        return _with_arguments(call)
    if not isinstance(inner, dict):
        return call
    FUNCTIONS.check(inner, unread)
    return call | {"function": _with_arguments(inner)}


def _with_arguments(function: Turn) -> Turn:
    """Gives a call with its arguments as an object, parsed if they are a string, since templates
    then write all calls alike. "" and null, as clients write them, mean no arguments."""
    given = choose(function, _ARGUMENTS)
    if given is None and any(key in function for key in _ARGUMENTS):
        given = {}
    elif isinstance(given, str):
        given = parse_json(given, '"arguments"') if given.strip() else {}
        check_json(given, '"arguments"')
    rest = {key: value for key, value in function.items() if key != "parameters"}
    return {**rest, "arguments": given}


def add_reasoning(read: Turn, reasoning: object) -> None:
    """Puts the reasoning where templates look for it. Raises RowProblem where the content contains
    different reasoning, or the turn is not the assistant's."""
    if reasoning is None or (isinstance(reasoning, str) and not reasoning.strip()):
        return
    if read.get("role") in _OTHERS_ROLES:
        raise RowProblem(f"reasoning of the role {read['role']!r}: only the assistant's is read")
    read["reasoning_content"] = reasoning
    content = read.get("content")
    if isinstance(reasoning, str) and isinstance(content, str):
        head, end, rest = content.partition(END_THINK)
        if end and head.lstrip().startswith(THINK):
            thought = head.lstrip().removeprefix(THINK).strip()
            if thought and thought != reasoning.strip():
                raise RowProblem(f"the reasoning and the {THINK} of the content differ: keep one")
            read["content"] = rest.lstrip("\n")


def _add_weight(read: Turn, turn: Turn) -> None:
    """Keeps a weight of 0 in the converted turn. Raises RowProblem for a weight between 0 and 1,
    for weights that contradict each other, and for a target that is not the assistant's."""
    learned: dict[str, bool] = {}
    for key in _ABOUT_LEARNING & turn.keys():
        value = turn[key]
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowProblem(
                f'"{key}" is {json.dumps(value)}; it must be 0 or 1, false or true: a turn is a '
                "target or none"
            )
        if key not in UNLEARNED:
            learned[key] = bool(value)
        elif value or read.get("role") == "assistant":
            learned[key] = not value
    if len(set(learned.values())) > 1:
        names = (json.dumps(key) for key in (*WEIGHTS, *UNLEARNED) if key in learned)
        raise RowProblem(f"{' and '.join(names)} contradict: keep one of them")
    if True in learned.values() and read.get("role") in _OTHERS_ROLES:
        raise RowProblem(
            f'"{next(iter(learned))}" asks to learn a turn of the role {read["role"]!r}: only the '
            "assistant's turns are targets"
        )
    if False in learned.values() and read.get("role") == "assistant":
        read["weight"] = 0
