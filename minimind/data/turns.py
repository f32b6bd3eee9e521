"""The turns of a conversation as people write them, in the project's own words: roles, reasoning,
content parts, tool calls and weights. What is wrong with a turn beyond that, chat_format says."""

from __future__ import annotations

import json
import operator
from typing import Any

from minimind.data.jsonl import RowProblem, json_type
from minimind.data.row_keys import KeyTable, Refusal, choose

Turn = dict[str, Any]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "bing": "assistant", "bard": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "ipython": "tool",
}  # fmt: skip
"""What the roles of other forms are called here. The text of a turn of `function_call` is the
call."""
_OWN_ROLES = ("system", "user", "assistant", "tool")
_OTHERS_ROLES = ("system", "user", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "training")
_NO_MEDIA = Refusal("the models read text alone: leave the row out, or write what it shows as text")
_MASK = Refusal('means the opposite in different projects: write "weight": 0 for a turn that is '
                'not to be learned, "weight": 1 for one that is')  # fmt: skip

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
    },
    refused={
        **dict.fromkeys(
            ("image", "images", "image_url", "audio", "audios", "video", "videos"), _NO_MEDIA
        ),
        **dict.fromkeys(("mask", "loss_mask", "masked"), _MASK),
        "refusal": Refusal('write the text of a refusal as "content"'),
        "reasoning_details": Refusal('write the reasoning as text, under "reasoning_content"'),
        **dict.fromkeys(
            ("from", "value"), Refusal("is of ShareGPT's form, and the turn has OpenAI's keys too")
        ),
    },
)
SHAREGPT_TURNS = KeyTable(
    of=" of turns",
    used={"from": TURNS.used["role"], "value": TURNS.used["content"]}
    | {key: what for key, what in TURNS.used.items() if key not in ("role", "content")},
    refused={key: why for key, why in TURNS.refused.items() if key not in ("from", "value")}
    | dict.fromkeys(
        ("role", "content"), Refusal("is of OpenAI's form, and the turn has ShareGPT's keys too")
    ),
)
_CALL_USED = {"name": "the function's", "arguments": "an object, or a string of JSON",
              "parameters": "the same under another name"}  # fmt: skip
CALLS = KeyTable(of=" of tool calls", used={**_CALL_USED, "type": "function", "function": "a call"})
FUNCTIONS = KeyTable(of=" of tool calls", used=_CALL_USED)
PARTS = KeyTable(
    of=" of content parts", used={"type": "text", "text": "the text", "thinking": "reasoning"}
)
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def read_turns(turns: object, what: str, unread: set[str]) -> Any:
    """The same turns in the project's own words; the given list where it is in them, and what is no
    list of objects. `what` names them, `unread` takes the keys to report. Raises RowProblem."""
    if not isinstance(turns, list):
        return turns
    read = []
    for number, turn in enumerate(turns, start=1):
        if isinstance(turn, dict):
            try:
                turn = _read_turn(turn, unread)
            except RowProblem as problem:
                raise RowProblem(f"turn {number} of {what}: {problem}") from None
        read.append(turn)
    return turns if all(map(operator.is_, read, turns)) else read


def _read_turn(turn: Turn, unread: set[str]) -> Turn:
    role, content = turn.get("role"), turn.get("content")
    if len(turn) == 2 and isinstance(content, str) and role in _OWN_ROLES:
        return turn
    is_sharegpt = "from" in turn and "role" not in turn
    (SHAREGPT_TURNS if is_sharegpt else TURNS).check(turn, unread)
    if is_sharegpt:
        role, content = turn["from"], turn.get("value")
    read = {
        key: value
        for key, value in turn.items()
        if key not in ("from", "value", "function_call", *REASONING, *WEIGHTS)
    }
    if role is not None:
        read["role"] = ROLES.get(role, role) if isinstance(role, str) else role
    if content is not None:
        read["content"] = content
    reasoning = choose(turn, REASONING)
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        read["content"], thought = _join_parts(content, unread)
        reasoning = choose({REASONING[0]: reasoning, "thinking": thought}, REASONING)
    calls = _read_calls(turn, read.get("content") if role == "function_call" else None, unread)
    if role == "function_call":
        read["content"] = ""
    if calls:
        read["tool_calls"] = calls
    _add_reasoning(read, reasoning)
    _add_weight(read, turn)
    if calls and read.get("role") != "assistant":
        raise RowProblem(f'"tool_calls" of the role {read.get("role")!r}: only the assistant calls')
    return read


def _join_parts(parts: list[Turn], unread: set[str]) -> tuple[str, str | None]:
    """The text of the parts, and what those of reasoning hold."""
    texts, thoughts = [], []
    for number, part in enumerate(parts, start=1):
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


def _read_calls(turn: Turn, text: object, unread: set[str]) -> Any:
    """The tool calls of a turn with arguments as objects. What is no list of objects stays as it
    is."""
    calls = turn.get("tool_calls")
    if text is not None:
        calls = _parsed(text)
        if not isinstance(calls, dict | list):
            raise RowProblem("the text of a function_call is no JSON object with a name")
        calls = calls if isinstance(calls, list) else [calls]
    elif legacy := turn.get("function_call"):
        if calls:
            raise RowProblem('"function_call" and "tool_calls" both: keep one of them')
        calls = [_parsed(legacy)]
    calls = _parsed(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return calls
    return [_read_call(call, unread) for call in calls]


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
    """With arguments as an object, where a string holds one: templates write objects all alike."""
    given = choose(function, ("arguments", "parameters"))
    parsed = _parsed(given)
    rest = {key: value for key, value in function.items() if key != "parameters"}
    return {**rest, "arguments": parsed if isinstance(parsed, dict) else given}


def _parsed(value: object) -> Any:
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _add_reasoning(read: Turn, reasoning: object) -> None:
    """Puts the reasoning where templates look for it. Raises RowProblem where the content has
    another, or the turn is not the assistant's."""
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
    """Keeps a weight of 0. Raises RowProblem for one between 0 and 1, for two that contradict, and
    for a target that is not the assistant's."""
    given = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowProblem(
                f'"{key}" is {json.dumps(value)}; it must be 0 or 1, false or true: a turn is a '
                "target or none"
            )
    values = {bool(value) for value in given.values()}
    if len(values) > 1:
        raise RowProblem(f"{' and '.join(map(json.dumps, given))} contradict: keep one of them")
    if True in values and read.get("role") in _OTHERS_ROLES:
        raise RowProblem(
            f'"{next(iter(given))}" asks to learn a turn of the role {read["role"]!r}: only the '
            "assistant's turns are targets"
        )
    if False in values and read.get("role") == "assistant":
        read["weight"] = 0
