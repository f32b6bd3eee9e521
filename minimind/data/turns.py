"""Converts turns to the project's own keys and values: roles, reasoning, content parts, tool calls
and weights. chat_format checks everything else about a turn."""

from __future__ import annotations

import json
import operator
from typing import Any

from minimind.data.json_strings import check_json, parse_json, read_objects
from minimind.data.jsonl import RowProblem, json_type
from minimind.data.row_keys import (
    KeyTable,
    Refusal,
    Suspicion,
    choose,
    is_number_like,
    is_prose,
)

Turn = dict[str, Any]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "bing": "assistant",
    "bard": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
"""The project's role for each role of other projects, in upper or lower case. The text of a
`function_call` or `tool_call` turn is the call."""
_OWN_ROLES = ("system", "user", "assistant", "tool")
_OTHERS_ROLES = ("system", "user", "tool")
_CALL_ROLES = ("function_call", "tool_call")
REASONING = ("reasoning_content", "reasoning", "thinking", "think", "thought", "thoughts", "cot",
             "chain_of_thought")  # fmt: skip
WEIGHTS = ("weight", "loss", "train", "training", "loss_weight", "loss_scale", "train_on_turn",
           "train_on", "trainable", "is_trained", "is_train", "is_target", "learn",
           "supervised")  # fmt: skip
UNLEARNED = ("no_loss", "ignore", "ignore_loss")
_ARGUMENTS = ("arguments", "parameters")
_WRITE_WEIGHT = (
    'write "weight": 0 for a turn that is not to be learned, "weight": 1 for one that is'
)
_NO_MEDIA = Refusal("the models read text alone: leave the row out, or write what it shows as text")
_MASK = Refusal(f"means the opposite in different projects: {_WRITE_WEIGHT}")
_DETAIL = Refusal(f"parts of a turn cannot be chosen: {_WRITE_WEIGHT}")
_LEARNING = Refusal(f"seems to say what is learned, and is not known: {_WRITE_WEIGHT}",
                    applies=lambda value, rest: is_number_like(value))  # fmt: skip
_BESIDE = Refusal('text beside the content would not be learned from: write it into "content"',
                  applies=lambda value, rest: is_prose(value))  # fmt: skip
_REASON = Refusal('if it is the assistant\'s reasoning, call it "reasoning_content", else leave it '
                  "out", applies=lambda value, rest: is_prose(value))  # fmt: skip
_ARGS = Refusal('write what the function is called with as "arguments"')

TURNS = KeyTable(
    of=" of turns",
    used={
        "role": "who speaks: " + ", ".join(ROLES),
        "content": 'text, or parts `{"type": "text", "text": …}`, which are joined',
        **dict.fromkeys(REASONING, "the assistant's reasoning"),
        "tools": "what can be called; JSON or a string of it",
        "tool_calls": "the calls; JSON or a string of it",
        "function_call": "one call, as in OpenAI's first form",
        **dict.fromkeys(WEIGHTS, "0 or false: the assistant's turn is no target"),
        **dict.fromkeys(UNLEARNED, "1 or true: the assistant's turn is no target"),
    },
    refused={
        **dict.fromkeys(
            ("image", "images", "image_url", "audio", "audios", "video", "videos"), _NO_MEDIA
        ),
        **dict.fromkeys(("mask", "loss_mask", "masked", "is_masked"), _MASK),
        **dict.fromkeys(("train_detail", "training_detail"), _DETAIL),
        **dict.fromkeys(("context", "document", "documents", "instruction", "input"), _BESIDE),
        **dict.fromkeys(("reason", "rationale", "analysis"), _REASON),
        "functions": Refusal('write what can be called as "tools"'),
        "channel": Refusal('write what is thought as "reasoning_content" of the turn that says the '
                           "answer", applies=lambda value, rest: value != "final"),
        "refusal": Refusal('write the text of a refusal as "content"'),
        "reasoning_details": Refusal('write the reasoning as text, under "reasoning_content"'),
        **dict.fromkeys(
            ("from", "value"), Refusal("is of ShareGPT's form, and the turn has OpenAI's keys too")
        ),
    },
    suspect=Suspicion(
        ("train", "trained", "trainable", "training", "untrained", "loss", "learn", "learned",
         "learnable", "mask", "masked", "supervise", "supervised", "supervision", "weight",
         "weights", "target", "ignore", "ignored", "label", "labels"),
        _LEARNING,
    ),
)  # fmt: skip
SHAREGPT_TURNS = KeyTable(
    of=" of turns",
    used={"from": TURNS.used["role"], "value": TURNS.used["content"]}
    | {key: what for key, what in TURNS.used.items() if key not in ("role", "content")},
    refused={key: why for key, why in TURNS.refused.items() if key not in ("from", "value")}
    | dict.fromkeys(
        ("role", "content"), Refusal("is of OpenAI's form, and the turn has ShareGPT's keys too")
    ),
    suspect=TURNS.suspect,
)
_CALL_USED = {"name": "the function's", "arguments": "an object, or a string of JSON",
              "parameters": "the same under another name"}  # fmt: skip
_CALL_REFUSED: dict[str, Refusal] = dict.fromkeys(("args", "kwargs", "input", "params"), _ARGS)
CALLS = KeyTable(" of tool calls", {**_CALL_USED, "type": "function", "function": "a call"},
                 _CALL_REFUSED)  # fmt: skip
FUNCTIONS = KeyTable(" of tool calls", _CALL_USED, _CALL_REFUSED)
PARTS = KeyTable(
    of=" of content parts", used={"type": "text", "text": "the text", "thinking": "reasoning"}
)
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
        and turn.get("role") in _OWN_ROLES
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
    if role in _CALL_ROLES:
        if not isinstance(text, str) or not text.lstrip().startswith(("{", "[")):
            raise RowProblem(f"the text of a {role} is no JSON object with a name")
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
        head, end, rest = content.partition("</think>")
        if end and head.lstrip().startswith("<think>"):
            thought = head.lstrip().removeprefix("<think>").strip()
            if thought and thought != reasoning.strip():
                raise RowProblem("the reasoning and the <think> of the content differ: keep one")
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
