"""The same rows in the forms of other projects give the same ids and targets as in our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind.data.chat_format import CHAT
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow
from minimind.data.preference_format import PREFERENCE
from minimind.data.prompt_format import PROMPT
from minimind.data.rows import open_rows
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.data.unpaired_format import UNPAIRED
from minimind.errors import DataError
from minimind.types import Row

Data = dict[str, Any]
Make = Callable[[Format, Data], TokenCache]

CALL = {"name": "weather", "arguments": {"town": "塔恩", "days": 2}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2+2?"}
FOUR, FIVE = ({"role": "assistant", "content": text} for text in "45")
TALK = [
    SYSTEM,
    {"role": "user", "content": "Weather in 塔恩?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rain": true}'},
    {"role": "assistant", "content": "It rains.", "reasoning_content": "The tool says so."},
]
OWN_TALK = {"conversations": [{**SYSTEM, "tools": TOOLS}, *TALK[1:]]}
OPENAI_CALL = {"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}


def text(content: str) -> list[Data]:
    return [{"type": "text", "text": content[:2]}, {"type": "text", "text": content[2:]}]


@pytest.fixture
def make(tmp_path: Path, tokenizer: Tokenizer) -> Make:
    """make(format, row) -> the cache of a file of that row."""

    def cache(data_format: Format, row: Data) -> TokenCache:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        return build_token_cache(path, tokenizer, data_format)

    return cache


def tokens(cache: TokenCache) -> list[tuple[list[int], list[bool]]]:
    found = []
    for number in range(cache.num_documents):
        is_target = cache.is_target(number)
        assert is_target is not None
        found.append((cache.tokens(number).tolist(), is_target.tolist()))
    return found


SAME_TALK: dict[str, Data] = {
    "tools and system of the row": {
        "system": "Be brief.", "tools": TOOLS, "conversations": TALK[1:],
    },
    "tools as a string": {"tools": json.dumps(TOOLS), "conversations": TALK},
    "OpenAI": {
        "messages": [
            {**SYSTEM, "role": "developer"},
            {**TALK[1], "content": text(TALK[1]["content"])},
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            TALK[3],
            {**TALK[4], "weight": 1},
        ],
        "tools": TOOLS,
    },
    "OpenAI's first functions": {
        "messages": [
            SYSTEM,
            TALK[1],
            {"role": "assistant", "content": None, "function_call": OPENAI_CALL["function"]},
            {**TALK[3], "role": "function"},
            TALK[4],
        ],
        "functions": [tool["function"] for tool in TOOLS],
    },
    "ShareGPT": {
        "system": "Be brief.",
        "tools": json.dumps(TOOLS),
        "conversations": [
            {"from": "human", "value": "Weather in 塔恩?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": '{"rain": true}'},
            {"from": "gpt", "value": "It rains.", "reasoning": "The tool says so."},
        ],
    },
    "reasoning in the text": {
        **OWN_TALK,
        "conversations": [
            *OWN_TALK["conversations"][:-1],
            {"role": "assistant", "content": "<think>\nThe tool says so.\n</think>\n\nIt rains."},
        ],
    },
    "reasoning twice": {
        **OWN_TALK,
        "conversations": [
            *OWN_TALK["conversations"][:-1],
            {"role": "assistant", "content": "<think>The tool says so.</think>\n\nIt rains.",
             "thinking": "The tool says so.", "reasoning": "The tool says so."},
        ],
    },
    "a thinking part": {
        **OWN_TALK,
        "conversations": [
            *OWN_TALK["conversations"][:-1],
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "The tool says so."},
                {"type": "text", "text": "It rains."},
            ]},
        ],
    },
    "nulls, as in Parquet": {
        "messages": [
            {"role": turn["role"], "content": turn.get("content"), "weight": None, "loss": None,
             "tool_calls": turn.get("tool_calls"), "thinking": turn.get("reasoning_content"),
             "name": None, "images": None}
            for turn in TALK
        ],
        "tools": TOOLS, "chosen": None, "label": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("row", SAME_TALK.values(), ids=list(SAME_TALK))
def test_a_conversation_in_other_forms(make: Make, row: Data) -> None:
    assert tokens(make(CHAT, row)) == tokens(make(CHAT, OWN_TALK))


SAME_QUESTION: dict[str, Data] = {
    "Alpaca": {
        "instruction": "2+2?", "input": "", "output": "4", "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    },
    "Alpaca with an input": {
        "instruction": "2", "input": "+2?", "output": "4", "system": "Be brief.",
        "history": [["Hi", "Hello"]],
    },
    "a question and its answer": {
        "question": "2+2?", "response": "4", "system_prompt": "Be brief.",
        "history": [("Hi", "Hello")],
    },
}  # fmt: skip
HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("row", SAME_QUESTION.values(), ids=list(SAME_QUESTION))
def test_alpaca(make: Make, row: Data) -> None:
    ask = {**ASK, "content": "2\n+2?"} if row.get("input") else ASK
    own = {"conversations": [SYSTEM, *HELLO, ask, FOUR]}
    assert tokens(make(CHAT, row)) == tokens(make(CHAT, own))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, *HELLO, ASK], "completion": [FOUR]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "weight": 0}, ASK, {**FOUR, "weight": 1}]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "train": False}, ASK, FOUR]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "loss": 0.0}, {**ASK, "loss": False}, FOUR]},
    ],
)
def test_an_answer_that_is_no_target(make: Make, row: Data) -> None:
    (ids, is_target) = tokens(make(CHAT, row))[0]
    ((own_ids, own_target),) = tokens(make(CHAT, {"conversations": [SYSTEM, *HELLO, ASK, FOUR]}))
    assert ids == own_ids
    last = int(np.flatnonzero(np.diff(own_target, prepend=False) & np.array(own_target))[-1])
    assert is_target == [flag and at >= last for at, flag in enumerate(own_target)]
    assert sum(is_target) < sum(own_target)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4"},
        {"query": "2+2?", "answer": "4"},
    ],
)
def test_a_question_and_an_answer_of_strings(make: Make, row: Data) -> None:
    assert tokens(make(CHAT, row)) == tokens(make(CHAT, {"conversations": [ASK, FOUR]}))


PAIR = {"chosen": [SYSTEM, ASK, FOUR], "rejected": [SYSTEM, ASK, FIVE]}
SAME_PAIR: dict[str, Data] = {
    "TRL's strings": {"system": "Be brief.", "prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "TRL's turns": {"prompt": [SYSTEM, ASK], "chosen": [FOUR], "rejected": [FIVE]},
    "a prompt that the sides repeat": {"prompt": [SYSTEM, ASK], **PAIR},
    "UltraFeedback": {
        "system": "Be brief.", "prompt": "2+2?", "chosen": [ASK, FOUR], "rejected": [ASK, FIVE],
        "messages": [ASK, FOUR],
    },
    "LLaMA-Factory, ShareGPT": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"},
    },
    "LLaMA-Factory, turns": {"conversations": [SYSTEM, ASK], "chosen": FOUR, "rejected": FIVE},
    "LLaMA-Factory, messages": {"messages": [SYSTEM, ASK], "chosen": FOUR, "rejected": FIVE},
    "Alpaca": {
        "instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5", "system": "Be brief.",
    },
    "a question": {"question": "2+2?", "chosen": "4", "rejected": "5", "system": "Be brief."},
    "OpenAI": {
        "input": {"messages": [SYSTEM, ASK], "tools": []},
        "preferred_output": [FOUR], "non_preferred_output": [FIVE],
    },
}  # fmt: skip


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=list(SAME_PAIR))
def test_pairs(make: Make, row: Data) -> None:
    assert tokens(make(PREFERENCE, row)) == tokens(make(PREFERENCE, PAIR))


@pytest.mark.parametrize("with_prompt", [False, True])
def test_dialogues_of_human_and_assistant(make: Make, with_prompt: bool) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"
    row = {"chosen": f"{prompt} 4", "rejected": f"{prompt} 5"}
    if with_prompt:
        row = {"prompt": prompt, "chosen": "4", "rejected": "5"}
    own = {"chosen": [*HELLO, ASK, FOUR], "rejected": [*HELLO, ASK, FIVE]}
    assert tokens(make(PREFERENCE, row)) == tokens(make(PREFERENCE, own))


LABELLED = {"conversations": [SYSTEM, *HELLO, ASK, FOUR], "label": True}
SAME_LABELLED: dict[str, Data] = {
    "OpenAI": {"messages": LABELLED["conversations"], "label": True},
    "LLaMA-Factory": {"messages": LABELLED["conversations"], "kto_tag": True},
    "ShareGPT": {
        "system": "Be brief.", "label": True,
        "conversations": [
            {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"},
        ],
    },
    "TRL": {"prompt": [SYSTEM, *HELLO, ASK], "completion": [FOUR], "label": True},
    "Alpaca": {
        "instruction": "2+2?", "output": "4", "history": [["Hi", "Hello"]], "system": "Be brief.",
        "kto_tag": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("row", SAME_LABELLED.values(), ids=list(SAME_LABELLED))
def test_answers_with_a_label(make: Make, row: Data) -> None:
    cache, own = make(UNPAIRED, row), make(UNPAIRED, LABELLED)
    assert tokens(cache) == tokens(own)
    assert cache.meta(0) == own.meta(0) == {"label": True}


ASKED: dict[str, Data] = {
    "OpenAI": {"messages": [SYSTEM, ASK]},
    "ShareGPT": {"system": "Be brief.", "conversations": [{"from": "human", "value": "2+2?"}]},
    "TRL": {"prompt": [SYSTEM, ASK]},
    "TRL's strings": {"system": "Be brief.", "prompt": "2+2?"},
    "GSM8K": {"system": "Be brief.", "question": "2+2?"},
    "Alpaca": {"system": "Be brief.", "instruction": "2+2?"},
}


@pytest.mark.parametrize("row", ASKED.values(), ids=list(ASKED))
def test_prompts_hand_on_what_rewards_look_at(make: Make, row: Data) -> None:
    more = {"answer": "4", "reward_model": {"ground_truth": "4"}, "answers": ["4", "four"]}
    cache = make(PROMPT, row | more)
    own = make(PROMPT, {"conversations": [SYSTEM, ASK], **more})
    assert cache.tokens(0).tolist() == own.tokens(0).tolist()
    kept = json.loads(cache.meta(0)["row"])
    assert {key: kept[key] for key in more} == more
    assert set(kept) - set(more) <= {"conversations", "system", "tools"}
    assert cache.unread == {}


def test_what_a_file_is_in_is_said(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make(CHAT, SAME_TALK["ShareGPT"])
    assert caplog.messages == [f"{tmp_path / 'rows.jsonl'}: ShareGPT (from, value)"]
    caplog.clear()
    make(CHAT, {"prompt": "a", "completion": "b"})
    assert "TRL's prompt and completion (targets: the completion alone)" in caplog.text
    caplog.clear()
    make(CHAT, OWN_TALK)
    assert caplog.messages == []


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


def test_json_in_strings_is_what_it_spells(make: Make) -> None:
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
        ids = [ids for ids, _ in tokens(make(CHAT, row))]
        assert ids == [ids for ids, _ in tokens(make(CHAT, own))]
    pair = {"chosen": [ASK, FOUR], "rejected": [ASK, FIVE]}
    for row in (
        {side: json.dumps(turns) for side, turns in pair.items()},
        {"prompt": "2+2?", "chosen": json.dumps([FOUR]), "rejected": json.dumps([FIVE])},
    ):
        assert tokens(make(PREFERENCE, row)) == tokens(make(PREFERENCE, pair))


def test_roles_are_known_in_any_case(make: Make) -> None:
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
        assert tokens(make(CHAT, row)) == tokens(make(CHAT, {"conversations": own}))


def test_calls_in_turns_of_their_own_are_one_turn(make: Make) -> None:
    """As ms-swift writes parallel calls."""
    calls = [{"name": name, "arguments": {"a": 1}} for name in "fg"]
    turns = [{"role": "tool_call", "content": json.dumps(call)} for call in calls]
    results = [{"role": "tool_response", "content": text} for text in "12"]
    own = [ASK, {"role": "assistant", "tool_calls": calls},
           *({"role": "tool", "content": text} for text in "12"), FOUR]  # fmt: skip
    given = {"messages": [ASK, *turns, *results, FOUR]}
    assert tokens(make(CHAT, given)) == tokens(make(CHAT, {"conversations": own}))
    apart = {"messages": [ASK, turns[0], results[0], turns[1], results[1], FOUR]}
    assert tokens(make(CHAT, apart)) != tokens(make(CHAT, given))


DIALOGUE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, ASK]


def test_dialogues_in_one_text(make: Make) -> None:
    """As BELLE's instructions and hh-rlhf's prompts have them."""
    lines = "Human:Hi\nAssistant:Yes?\nHuman:2+2?\nAssistant:"
    parts = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2?\n\nAssistant:"
    for text in (lines, parts):
        row = {"instruction": text, "input": "", "output": "4"}
        own = tokens(make(CHAT, {"conversations": [*DIALOGUE, FOUR]}))
        assert tokens(make(CHAT, row)) == own
        assert [ids for ids, _ in tokens(make(CHAT, {"prompt": text, "completion": "4"}))] == [
            ids for ids, _ in own
        ]
        pair = {"chosen": [*DIALOGUE, FOUR], "rejected": [*DIALOGUE, FIVE]}
        row = {"prompt": text, "chosen": "4", "rejected": "5"}
        assert tokens(make(PREFERENCE, row)) == tokens(make(PREFERENCE, pair))
    quoted = {"instruction": "Human: is this a name?", "output": "4"}
    (ids, _), *_ = tokens(make(CHAT, quoted))
    own = {"conversations": [{"role": "user", "content": "Human: is this a name?"}, FOUR]}
    assert ids == tokens(make(CHAT, own))[0][0]


def test_forms_of_single_data_sets(make: Make, tmp_path: Path) -> None:
    pairs = [{"human": "Hi", "assistant": "Yes?"}, {"human": "2+2?", "assistant": "4"}]
    own = {"conversations": [*DIALOGUE, FOUR]}
    given = {"conversation_id": 1, "category": "c", "conversation": pairs}
    cache = make(CHAT, given)
    assert cache.unread == {"'category'": 1, "'conversation_id'": 1}
    assert tokens(cache) == tokens(make(CHAT, own))
    assert tokens(make(CHAT, {"kind": "NLI", "input": "2+2?", "target": "4"})) == tokens(
        make(CHAT, {"conversations": [ASK, FOUR]})
    )
    assert tokens(make(CHAT, {"problem": "2+2?", "solution": "4"})) == tokens(
        make(CHAT, {"conversations": [ASK, FOUR]})
    )
    called = {"query": "2+2?", "answers": json.dumps([CALL]), "tools": json.dumps(TOOLS)}
    turns = [{**ASK, "tools": TOOLS}, {"role": "assistant", "tool_calls": [CALL]}]
    assert tokens(make(CHAT, called)) == tokens(make(CHAT, {"conversations": turns}))


def test_rows_within_a_row_are_found(make: Make) -> None:
    with pytest.raises(DataError, match=r'stand under "data": take them out with jq -c \'\.data\['):
        make(CHAT, {"version": 1, "data": [{"messages": [ASK, FOUR]}]})
    with pytest.raises(DataError, match=r"keys found: 'system', 'chat'\);"):
        make(CHAT, {"system": "S", "chat": "USER: q"})
