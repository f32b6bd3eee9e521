"""Arguments, roles, calls and dialogues that several forms of rows spell in their own way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_rows import MakeCache
from dialect_rows import ASK, CALL, FIVE, FOUR, OWN_TALK, SYSTEM, TALK, TOOLS, tokens

from minimind.data.chat_format import CHAT
from minimind.data.jsonl import BadRow
from minimind.data.preference_format import PREFERENCE
from minimind.data.rows import open_rows
from minimind.errors import DataError
from minimind.types import Row


def test_arguments_are_objects_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    calls = [
        {"name": "f", "parameters": {"a": 1}},
        {"function": {"name": "f", "arguments": '{"a": 1}'}},
        {"name": "f", "arguments": ""},
        {"name": "f", "arguments": None},
    ]
    turn = {"role": "assistant", "tool_calls": calls}
    broken = {**turn, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    path.write_text("".join(json.dumps({"messages": [one]}) + "\n" for one in (turn, broken)))
    (row, _), (bad, _) = open_rows(path, ("chat",))
    assert isinstance(row, Row)
    first, second, *empty = row.data["conversations"][0]["tool_calls"]
    assert first == {"name": "f", "arguments": {"a": 1}}
    assert second["function"] == {"name": "f", "arguments": {"a": 1}}
    assert empty == [{"name": "f", "arguments": {}}] * 2
    assert isinstance(bad, BadRow)
    assert 'turn 1 of "messages": tool call 1: "arguments" is not JSON' in bad.reason


def test_json_in_strings_is_what_it_spells(cache_of: MakeCache) -> None:
    """Whole conversations, tools in OpenAI's first form, lists of strings of JSON."""
    own = {**OWN_TALK, "tools": TOOLS}
    bare = [tool["function"] for tool in TOOLS]
    for row in (
        {"messages": json.dumps(OWN_TALK["conversations"])},
        {"conversations": json.dumps(OWN_TALK["conversations"])},
        {"conversations": TALK, "functions": json.dumps(bare)},
        {"conversations": TALK, "functions": TOOLS},
        {"conversations": TALK, "tools": [json.dumps(tool) for tool in TOOLS]},
        {"prompt": json.dumps(OWN_TALK["conversations"][:-1]), "completion": [TALK[-1]]},
    ):
        ids = [ids for ids, _ in tokens(cache_of(CHAT, row))]
        assert ids == [ids for ids, _ in tokens(cache_of(CHAT, own))]
    pair = {"chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}
    for row in (
        {side: json.dumps(turns) for side, turns in pair.items()},
        {"prompt": "2+2?", "chosen": json.dumps([FOUR]), "rejected": json.dumps([FIVE])},
    ):
        assert tokens(cache_of(PREFERENCE, row)) == tokens(cache_of(PREFERENCE, pair))


def test_roles_are_known_in_any_case(cache_of: MakeCache) -> None:
    call = {"role": "Tool_Call", "content": json.dumps(CALL)}
    turns = [{"role": "SYSTEM", "content": "Be brief."}, {"role": "Human", "content": "2+2?"}, call,
             {"role": "tool_response", "content": "4"}, {"role": "AI", "content": "4"}]  # fmt: skip
    own = [SYSTEM, ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]},
           {"role": "tool", "content": "4"}, FOUR]  # fmt: skip
    shared = [{"from": turn["role"], "value": turn["content"]} for turn in turns]
    for row in (
        {"messages": turns},
        {"conversations": shared},
        {"sys": "Be brief.", "messages": turns[1:]},
        {"system_message": "Be brief.", "messages": turns[1:]},
    ):
        assert tokens(cache_of(CHAT, row)) == tokens(cache_of(CHAT, {"conversations": own}))


def test_calls_in_turns_of_their_own_are_one_turn(cache_of: MakeCache) -> None:
    """As ms-swift writes parallel calls."""
    calls = [{"name": name, "arguments": {"a": 1}} for name in "fg"]
    turns = [{"role": "tool_call", "content": json.dumps(call)} for call in calls]
    results = [{"role": "tool_response", "content": text} for text in "12"]
    own = [ASK, {"role": "assistant", "tool_calls": calls},
           *({"role": "tool", "content": text} for text in "12"), FOUR]  # fmt: skip
    given = {"messages": [ASK, *turns, *results, FOUR]}
    assert tokens(cache_of(CHAT, given)) == tokens(cache_of(CHAT, {"conversations": own}))
    apart = {"messages": [ASK, turns[0], results[0], turns[1], results[1], FOUR]}
    assert tokens(cache_of(CHAT, apart)) != tokens(cache_of(CHAT, given))


DIALOGUE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, ASK]


def test_dialogues_in_one_text(cache_of: MakeCache) -> None:
    """As BELLE's instructions and hh-rlhf's prompts have them."""
    lines = "Human:Hi\nAssistant:Yes?\nHuman:2+2?\nAssistant:"
    parts = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant:"
    for text in (lines, parts):
        row = {"instruction": text, "input": "", "output": "4"}
        own = tokens(cache_of(CHAT, {"conversations": [*DIALOGUE, FOUR]}))
        assert tokens(cache_of(CHAT, row)) == own
        assert [ids for ids, _ in tokens(cache_of(CHAT, {"prompt": text, "completion": "4"}))] == [
            ids for ids, _ in own
        ]
        pair = {"chosen": [*DIALOGUE, FOUR], "rejected": [*DIALOGUE, FIVE]}
        row = {"prompt": text, "chosen": "4", "rejected": "5"}
        assert tokens(cache_of(PREFERENCE, row)) == tokens(cache_of(PREFERENCE, pair))
    quoted = {"instruction": "Human: is this a name?", "output": "4"}
    (ids, _), *_ = tokens(cache_of(CHAT, quoted))
    own = {"conversations": [{"role": "user", "content": "Human: is this a name?"}, FOUR]}
    assert ids == tokens(cache_of(CHAT, own))[0][0]


def test_forms_of_single_data_sets(cache_of: MakeCache, tmp_path: Path) -> None:
    pairs = [{"human": "Hi", "assistant": "Yes?"}, {"human": "2+2?", "assistant": "4"}]
    own = {"conversations": [*DIALOGUE, FOUR]}
    given = {"conversation_id": 1, "category": "c", "conversation": pairs}
    cache = cache_of(CHAT, given)
    assert cache.unread == {"'category'": 1, "'conversation_id'": 1}
    assert tokens(cache) == tokens(cache_of(CHAT, own))
    called = {"query": "2+2?", "answers": json.dumps([CALL]), "tools": json.dumps(TOOLS)}
    turns = [{**ASK, "tools": TOOLS}, {"role": "assistant", "tool_calls": [CALL]}]
    assert tokens(cache_of(CHAT, called)) == tokens(cache_of(CHAT, {"conversations": turns}))


def test_rows_within_a_row_are_found(cache_of: MakeCache) -> None:
    with pytest.raises(DataError, match=r'stand under "data": take them out with jq -c \'\.data\['):
        cache_of(CHAT, {"version": 1, "data": [{"messages": [ASK, FOUR]}]})
    with pytest.raises(DataError, match=r"keys found: 'system', 'chat'\);"):
        cache_of(CHAT, {"system": "S", "chat": "USER: q"})
