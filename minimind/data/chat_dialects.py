"""Conversations as OpenAI, ShareGPT, Alpaca and TRL write them; preference pairs, labelled answers
and prompts in the same forms are made of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minimind.data.dialects import OWN, Data, Dialect, Matches, as_text, has_turns
from minimind.data.jsonl import RowProblem
from minimind.data.row_keys import KeyTable, Refusal, choose
from minimind.data.turns import TURNS, Turn, read_turns

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
ASKED = ("instruction", "question", "query")
GIVEN = ("input", "context")
SAID = ("output", "response", "answer")
SHARED_KEYS = {
    **dict.fromkeys(SYSTEM, "the system prompt"),
    "tools": "what can be called; JSON or a string of it",
    "functions": "the same in OpenAI's first form",
}
"""Of every row that holds a conversation."""
_PAIR = Refusal("a preference pair is for --stage dpo: a conversation beside it would be learned "
                "as if it were the better answer")  # fmt: skip
_LABEL = Refusal("a row with a label is for --stage kto: here the bad answers would be learned as "
                 "the good ones; leave the key out of the rows that are to be learned",
                 applies=lambda value: isinstance(value, bool))  # fmt: skip
_TWO = Refusal("a second conversation in one row: keep one of them")
NO_MEDIA = {
    key: TURNS.refused[key] for key in TURNS.refused if key.startswith(("image", "audio", "video"))
}
CHAT_REFUSED = {
    **NO_MEDIA,
    "chosen": _PAIR,
    "rejected": _PAIR,
    "label": _LABEL,
    "kto_tag": _LABEL,
    "mask": TURNS.refused["mask"],
    "weight": Refusal(
        'weights of whole rows are not read: leave a row out, or write "weight": 0 in the turns '
        "that are not to be learned"
    ),
}


def read_shared(data: Mapping[str, Any]) -> Data:
    """The row's own system prompt and tools, under the project's names."""
    read: Data = {}
    if not any(key in data for key in SHARED_KEYS):
        return read
    if system := as_text(choose(data, SYSTEM), '"system"'):
        read["system"] = system
    functions = data.get("functions")
    if functions and isinstance(functions, list):
        data = {**data, "functions": [{"type": "function", "function": f} for f in functions]}
    if tools := choose(data, TOOLS):
        read["tools"] = tools
    return read


def read_list(data: Data, key: str, unread: set[str]) -> Data:
    """The conversation of a list of turns, which may be anyone's."""
    if key not in data:
        return data  # the format says so, with the keys that there are
    turns = read_turns(data[key], f'"{key}"', unread)
    if len(data) == 1 and turns is data.get("conversations"):
        return data
    return {**read_shared(data), "conversations": turns}


def read_question(data: Data) -> list[Turn]:
    """What is asked in Alpaca's form: the turns of the history, then the instruction and the input
    a line below it."""
    turns = []
    history = data.get("history") or []
    if not isinstance(history, list):
        raise RowProblem('"history" is no list of [question, answer]')
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowProblem(f'"history" {number} is no [question, answer]')
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = as_text(choose(data, ASKED), f'"{ASKED[0]}"')
    given = as_text(choose(data, GIVEN), f'"{GIVEN[0]}"')
    text = "\n".join(part for part in (asked, given) if part)
    if not text.strip():
        raise RowProblem(f'"{ASKED[0]}" and "{GIVEN[0]}" are both empty: there is no question')
    return [*turns, {"role": "user", "content": text}]


def read_alpaca(data: Data, unread: set[str]) -> Data:
    answer = as_text(choose(data, SAID), f'"{SAID[0]}"')
    if not answer.strip():
        raise RowProblem(f'"{SAID[0]}" is empty: there is no answer to learn')
    turns = [*read_question(data), {"role": "assistant", "content": answer}]
    return {**read_shared(data), "conversations": turns}


def read_side(data: Data, key: str, role: str, unread: set[str]) -> list[Turn]:
    """The turns under a key that holds a text of `role`, a turn, or several. Raises RowProblem."""
    value = data.get(key)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = read_turns([value] if isinstance(value, dict) else value, f'"{key}"', unread)
    if not isinstance(turns, list) or not turns:
        raise RowProblem(f'"{key}" is no text and no list of turns')
    return turns


def read_completion(data: Data, unread: set[str]) -> Data:
    prompt = read_side(data, "prompt", "user", unread)
    if any(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in prompt):
        prompt = [_untrained(turn) for turn in prompt]
    if "completion" in data and "response" in data:
        raise RowProblem('"completion" and "response" both: keep one of them')
    key = "completion" if "completion" in data else "response"
    completion = read_side(data, key, "assistant", unread)
    return {**read_shared(data), "conversations": [*prompt, *completion]}


def _untrained(turn: Any) -> Any:
    is_answer = isinstance(turn, dict) and turn.get("role") == "assistant"
    return {**turn, "weight": 0} if is_answer else turn


PROMPT_KEY = {"prompt": "a text of the user, or turns"}
COMPLETION_KEYS = {
    **PROMPT_KEY,
    **dict.fromkeys(("completion", "response"), "a text of the assistant, or turns"),
    **SHARED_KEYS,
}
ALPACA_KEYS = {
    **dict.fromkeys(ASKED, "what the user asks"),
    **dict.fromkeys(GIVEN, "more of it, a line below"),
    "history": "earlier questions and answers, [[question, answer], …]",
    **dict.fromkeys(SYSTEM, "the system prompt"),
}
ANSWER_KEYS: dict[str, str] = dict.fromkeys(SAID, "the answer")


def build_keys(
    *used: Mapping[str, str], refused: Mapping[str, Refusal], hands_on: bool = False
) -> KeyTable:
    """The table of a row's keys; a key that is used is not refused, and a second list of turns
    beside those that are used is."""
    names = {key: what for part in used for key, what in part.items()}
    refused = {**refused, "messages": _TWO, "conversations": _TWO}
    refused = {key: why for key, why in refused.items() if key not in names}
    return KeyTable("", names, refused, hands_on)


def build_list_dialects(
    finish: Callable[[Data, Data], Data],
    more: Mapping[str, str],
    refused: Mapping[str, Refusal],
    *,
    hands_on: bool = False,
    tail: str = "",
) -> tuple[Dialect, ...]:
    """The dialects whose conversation stands in one list of turns. `finish` takes what the kind of
    row has beside it from the row into what was read; `more`: its keys, `tail`: them in an
    example."""

    def dialect(name: str, title: str, key: str, turn: str, matches: Matches) -> Dialect:
        return Dialect(
            name=name,
            title=title,
            example=f'{{"{key}": [{turn}, …]{tail}}}',
            keys=build_keys({key: "the turns"}, SHARED_KEYS, more, refused=refused,
                            hands_on=hands_on),
            matches=matches,
            convert=lambda data, unread: finish(data, read_list(data, key, unread)),
        )  # fmt: skip

    said, told = '{"role": "user", "content": "…"}', '{"from": "human", "value": "…"}'
    return (
        dialect(
            OWN, "the project's own form", "conversations", said,
            lambda data: "conversations" in data and not has_turns(data["conversations"], "from"),
        ),
        dialect(
            "openai", "OpenAI's messages", "messages", said,
            lambda data: "messages" in data and "conversations" not in data,
        ),
        dialect(
            "sharegpt", "ShareGPT (from, value)", "conversations", told,
            lambda data: has_turns(data.get("conversations"), "from"),
        ),
    )  # fmt: skip


def is_completion(data: Mapping[str, Any]) -> bool:
    return "prompt" in data and ("completion" in data or "response" in data)


def is_alpaca(data: Mapping[str, Any]) -> bool:
    return any(key in data for key in ASKED)


CHAT_DIALECTS = (
    *build_list_dialects(lambda data, read: read, {}, CHAT_REFUSED),
    Dialect(
        name="alpaca",
        title="Alpaca (instruction, input, output)",
        example='{"instruction": "…", "input": "…", "output": "…"}',
        keys=build_keys(ALPACA_KEYS, ANSWER_KEYS, refused=CHAT_REFUSED),
        matches=lambda data: is_alpaca(data) and any(key in data for key in SAID),
        convert=read_alpaca,
    ),
    Dialect(
        name="trl",
        title="TRL's prompt and completion",
        example='{"prompt": "…" or [turns], "completion": "…" or [turns]}',
        keys=build_keys(COMPLETION_KEYS, refused=CHAT_REFUSED),
        matches=is_completion,
        convert=read_completion,
        targets="the completion alone",
    ),
)
