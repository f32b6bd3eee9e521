"""The same rows in the forms of other projects give the same ids and targets as in our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_rows import MakeCache
from dialect_rows import (
    ASK,
    CALL,
    FIVE,
    FOUR,
    HELLO,
    OPENAI_CALL,
    OWN_TALK,
    SYSTEM,
    TALK,
    TOOLS,
    Data,
    text,
    tokens,
)

from minimind.data.chat_format import CHAT
from minimind.data.preference_format import PREFERENCE
from minimind.data.prompt_format import PROMPT
from minimind.data.unpaired_format import UNPAIRED

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
def test_a_conversation_in_other_forms(cache_of: MakeCache, row: Data) -> None:
    assert tokens(cache_of(CHAT, row)) == tokens(cache_of(CHAT, OWN_TALK))


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


@pytest.mark.parametrize("row", SAME_QUESTION.values(), ids=list(SAME_QUESTION))
def test_alpaca(cache_of: MakeCache, row: Data) -> None:
    ask = {**ASK, "content": "2\n+2?"} if row.get("input") else ASK
    own = {"conversations": [SYSTEM, *HELLO, ask, FOUR]}
    assert tokens(cache_of(CHAT, row)) == tokens(cache_of(CHAT, own))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, *HELLO, ASK], "completion": [FOUR]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "weight": 0}, ASK, {**FOUR, "weight": 1}]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "train": False}, ASK, FOUR]},
        {"messages": [SYSTEM, HELLO[0], {**HELLO[1], "loss": 0.0}, {**ASK, "loss": False}, FOUR]},
    ],
)
def test_an_answer_that_is_no_target(cache_of: MakeCache, row: Data) -> None:
    (ids, is_target) = tokens(cache_of(CHAT, row))[0]
    ((own_ids, own_target),) = tokens(
        cache_of(CHAT, {"conversations": [SYSTEM, *HELLO, ASK, FOUR]})
    )
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
        {"kind": "NLI", "input": "2+2?", "target": "4"},
        {"problem": "2+2?", "solution": "4"},
    ],
)
def test_a_question_and_an_answer_of_strings(cache_of: MakeCache, row: Data) -> None:
    assert tokens(cache_of(CHAT, row)) == tokens(cache_of(CHAT, {"conversations": [ASK, FOUR]}))


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
def test_pairs(cache_of: MakeCache, row: Data) -> None:
    assert tokens(cache_of(PREFERENCE, row)) == tokens(cache_of(PREFERENCE, PAIR))


@pytest.mark.parametrize("with_prompt", [False, True])
def test_dialogues_of_human_and_assistant(cache_of: MakeCache, with_prompt: bool) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"
    row = {"chosen": f"{prompt} 4", "rejected": f"{prompt} 5"}
    if with_prompt:
        row = {"prompt": prompt, "chosen": "4", "rejected": "5"}
    own = {"chosen": [*HELLO, ASK, FOUR], "rejected": [*HELLO, ASK, FIVE]}
    assert tokens(cache_of(PREFERENCE, row)) == tokens(cache_of(PREFERENCE, own))


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
def test_answers_with_a_label(cache_of: MakeCache, row: Data) -> None:
    cache, own = cache_of(UNPAIRED, row), cache_of(UNPAIRED, LABELLED)
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
def test_prompts_hand_on_what_rewards_look_at(cache_of: MakeCache, row: Data) -> None:
    more = {"answer": "4", "reward_model": {"ground_truth": "4"}, "answers": ["4", "four"]}
    cache = cache_of(PROMPT, row | more)
    own = cache_of(PROMPT, {"conversations": [SYSTEM, ASK], **more})
    assert cache.tokens(0).tolist() == own.tokens(0).tolist()
    kept = json.loads(cache.meta(0)["row"])
    assert {key: kept[key] for key in more} == more
    assert set(kept) - set(more) <= {"conversations", "system", "tools"}
    assert cache.unread == {}


def test_what_a_file_is_in_is_said(
    cache_of: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cache_of(CHAT, SAME_TALK["ShareGPT"])
    assert caplog.messages == [f"{tmp_path / 'rows.jsonl'}: ShareGPT (from, value)"]
    caplog.clear()
    cache_of(CHAT, {"prompt": "a", "completion": "b"})
    assert "TRL's prompt and completion (targets: the completion alone)" in caplog.text
    caplog.clear()
    cache_of(CHAT, OWN_TALK)
    assert caplog.messages == []
