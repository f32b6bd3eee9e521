"""Reads conversations in the forms of OpenAI, ShareGPT, Alpaca and TRL. Preference pairs, labelled
answers and prompts are read with the same building blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from minimind.data.dialects import OWN, Data, Dialect, Matches, as_text, has_turns
from minimind.data.json_strings import parse_json, read_objects
from minimind.data.jsonl import RowProblem
from minimind.data.row_keys import KeyTable, Refusal, choose, is_prose
from minimind.data.row_refusals import CHAT_REFUSED
from minimind.data.transcripts import is_open_transcript, read_open_transcript
from minimind.data.turn_keys import REASONING
from minimind.data.turns import Turn, add_reasoning, read_turns

SYSTEM = ("system", "system_prompt", "sys", "system_message")
TOOLS = ("tools", "functions")
ASKED = ("instruction", "question", "query", "problem")
GIVEN = ("input", "context")
SAID = ("output", "response", "answer", "target", "solution")
TOOL_KEYS = {
    "tools": "the functions that can be called; JSON or a string of JSON",
    "functions": "the same in OpenAI's first form",
}
SHARED_KEYS = {
    **dict.fromkeys(SYSTEM, "the system prompt"),
    **TOOL_KEYS,
}
"""The keys that any row with a conversation may have."""
_TWO = Refusal("a second conversation in one row: keep one of them")
_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")


def read_shared(data: Mapping[str, Any]) -> Data:
    """Gives the row's own system prompt and tools under the project's keys."""
    read: Data = {}
    if not any(key in data for key in SHARED_KEYS):
        return read
    if system := as_text(choose(data, SYSTEM), '"system"'):
        read["system"] = system
    if functions := data.get("functions"):
        bare = read_objects(functions, '"functions"')
        data = {**data, "functions": [
            one if "function" in one else {"type": "function", "function": one} for one in bare
        ]}  # fmt: skip
    if tools := choose(data, TOOLS):
        read["tools"] = tools
    return read


def read_list(data: Data, key: str, unread: set[str]) -> Data:
    """Reads a conversation from a list of turns, or from a string that holds the list as JSON. The
    conversation may begin with any role."""
    if key not in data:
        return data  # the format reports the missing key
    turns = read_turns(unpack_turns(data[key], f'"{key}"'), f'"{key}"', unread)
    if len(data) == 1 and turns is data.get("conversations"):
        return data
    return {**read_shared(data), "conversations": turns}


def unpack_turns(value: object, what: str) -> Any:
    """Gives the turns that a JSON string holds, and any other value unchanged. Raises
    RowProblem."""
    return parse_json(value, what) if isinstance(value, str) and spells_turns(value) else value


def spells_turns(text: str) -> bool:
    """Tells whether a string looks like a list of turns written as JSON."""
    return _TURNS.match(text) is not None


def read_question(data: Data) -> list[Turn]:
    """Gives the turns of Alpaca's question: those of the history, then the instruction with the
    input on the line below."""
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
    if is_open_transcript(text):
        return [*turns, *read_open_transcript(text, f'"{ASKED[0]}"')]
    return [*turns, {"role": "user", "content": text}]


def read_alpaca(data: Data, unread: set[str]) -> Data:
    answer = as_text(choose(data, SAID), f'"{SAID[0]}"')
    if not answer.strip():
        raise RowProblem(f'"{SAID[0]}" is empty: there is no answer to learn')
    turns = [*read_question(data), {"role": "assistant", "content": answer}]
    return {**read_shared(data), "conversations": _with_thought(turns, data)}


def _with_thought(turns: list[Turn], data: Data) -> list[Turn]:
    """Puts the row's reasoning into its last turn. Raises RowProblem."""
    thought = choose(data, REASONING)
    if thought is None:
        return turns
    if not isinstance(thought, str) or not is_prose(thought):
        key = next(key for key in REASONING if data.get(key) not in (None, ""))
        raise RowProblem(f'"{key}" is {json.dumps(thought)}, which is no reasoning: leave it out')
    *before, last = turns
    if last.get("reasoning_content", thought) != thought:
        raise RowProblem("the reasoning of the row and that of its last turn differ: keep one")
    last = dict(last)
    add_reasoning(last, thought)
    return [*before, last]


def read_side(data: Data, key: str, role: str, unread: set[str]) -> list[Turn]:
    """Gives the turns under `key`, whose value may be the text of a turn by `role`, one turn, a
    list of turns, or JSON of turns. Raises RowProblem."""
    value = unpack_turns(data.get(key), f'"{key}"')
    if isinstance(value, str):
        if role == "user" and is_open_transcript(value):
            return read_open_transcript(value, f'"{key}"')
        return [{"role": role, "content": value}]
    turns = read_turns([value] if isinstance(value, dict) else value, f'"{key}"', unread)
    if not isinstance(turns, list) or not turns:
        raise RowProblem(f'"{key}" is no text and no list of turns')
    return turns


def read_completion(data: Data, unread: set[str]) -> Data:
    prompt = map(_untrained, read_side(data, "prompt", "user", unread))
    if "completion" in data and "response" in data:
        raise RowProblem('"completion" and "response" both: keep one of them')
    key = "completion" if "completion" in data else "response"
    turns = [*prompt, *read_side(data, key, "assistant", unread)]
    if all(isinstance(turn, dict) for turn in turns):
        turns = _with_thought(turns, data)
    return {**read_shared(data), "conversations": turns}


def _untrained(turn: Any) -> Any:
    is_answer = isinstance(turn, dict) and turn.get("role") == "assistant"
    return {**turn, "weight": 0} if is_answer else turn


PROMPT_KEY = {"prompt": "a text of the user, or turns"}
ANSWER_KEYS = {
    **dict.fromkeys(SAID, "the answer"),
    **dict.fromkeys(REASONING, "the reasoning before it"),
}
COMPLETION_KEYS = {
    **PROMPT_KEY,
    **dict.fromkeys(("completion", "response"), "a text of the assistant, or turns"),
    **dict.fromkeys(REASONING, ANSWER_KEYS[REASONING[0]]),
    **SHARED_KEYS,
}
ALPACA_KEYS = {
    **dict.fromkeys(ASKED, "the user's question"),
    **dict.fromkeys(GIVEN, "more of the question, on the next line"),
    "history": "earlier questions and answers, [[question, answer], …]",
    **dict.fromkeys(SYSTEM, "the system prompt"),
}


def build_keys(
    *used: Mapping[str, str], refused: Mapping[str, Refusal], hands_on: bool = False
) -> KeyTable:
    """Builds the table of a row's keys. A key in `used` is not refused; a second list of turns is
    refused unless it is used."""
    names = {key: what for part in used for key, what in part.items()}
    refused = {**refused, "messages": _TWO, "conversations": _TWO}
    refused = {key: why for key, why in refused.items() if key not in names}
    return KeyTable("", names, refused, hands_on=hands_on)


def build_list_dialects(
    finish: Callable[[Data, Data], Data],
    more: Mapping[str, str],
    refused: Mapping[str, Refusal],
    *,
    hands_on: bool = False,
    tail: str = "",
) -> tuple[Dialect, ...]:
    """Builds the dialects that keep a conversation in one list of turns. `finish` copies the row's
    other values into the converted row; `more` describes their keys, and `tail` shows them in an
    example row."""

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


def build_answer_dialects(
    finish: Callable[[Data, Data], Data],
    more: Mapping[str, str],
    refused: Mapping[str, Refusal],
    *,
    titles: tuple[str, str],
    is_answered: Matches,
    tail: str = "",
    targets: str = "",
) -> tuple[Dialect, ...]:
    """Builds the dialects of a question and its answer: Alpaca's, where `is_answered` tells
    answered questions from questions alone, and TRL's, where `targets` says what is learned. The
    other arguments are those of build_list_dialects. Neither dialect refuses the question keys of
    the other: with --format a row may have both."""
    refused = {
        key: why for key, why in refused.items() if key not in (*ASKED, *PROMPT_KEY, "input")
    }
    return (
        Dialect(
            name="alpaca",
            title=titles[0],
            example=f'{{"instruction": "…", "input": "…", "output": "…"{tail}}}',
            keys=build_keys(ALPACA_KEYS, ANSWER_KEYS, SHARED_KEYS, more, refused=refused),
            matches=lambda data: (
                is_answered(data) and (is_alpaca(data) or isinstance(data.get("input"), str))
            ),
            convert=lambda data, unread: finish(data, read_alpaca(data, unread)),
        ),
        Dialect(
            name="trl",
            title=titles[1],
            example=f'{{"prompt": "…" or [turns], "completion": "…" or [turns]{tail}}}',
            keys=build_keys(COMPLETION_KEYS, more, refused=refused),
            matches=is_completion,
            convert=lambda data, unread: finish(data, read_completion(data, unread)),
            targets=targets,
        ),
    )


def keep(data: Data, read: Data) -> Data:
    """Gives the converted row unchanged: a conversation has no other values."""
    return read


CHAT_DIALECTS = (
    *build_list_dialects(keep, {}, CHAT_REFUSED),
    *build_answer_dialects(
        keep,
        {},
        CHAT_REFUSED,
        titles=("Alpaca (instruction, input, output)", "TRL's prompt and completion"),
        is_answered=lambda data: any(key in data for key in SAID),
        targets="the completion alone",
    ),
)
