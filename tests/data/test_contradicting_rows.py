"""Rows that contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest
from chat_rows import CALL, SAID, TOOLS, USER, chat
from data_rows import MakeCache

from minimind.data.chat_format import CHAT
from minimind.data.formats import Format
from minimind.data.preference_format import PREFERENCE
from minimind.data.prompt_format import PROMPT
from minimind.data.unpaired_format import UNPAIRED
from minimind.errors import DataError

CONTRADICTIONS = [
    (CHAT, chat(USER, {**SAID, "reasoning": "a", "thinking": "b"}), '"reasoning" and "thinking"'),
    (CHAT, chat(USER, {"role": "assistant", "content": "<think>x</think>y", "reasoning": "z"}),
     "the reasoning and the <think> of the content differ"),
    (CHAT, chat({**USER, "reasoning": "r"}, SAID), "reasoning of the role 'user'"),
    (CHAT, chat({**USER, "weight": 1}, SAID), '"weight" asks to learn a turn of the role \'user\''),
    (CHAT, chat({**USER, "train": True}, SAID), "only the assistant's turns are targets"),
    (CHAT, chat(USER, {**SAID, "weight": 0.5}), '"weight" is 0.5; it must be 0 or 1'),
    (CHAT, chat(USER, {**SAID, "loss": "false"}), '"loss" is "false"; it must be 0 or 1'),
    (CHAT, chat(USER, {**SAID, "loss": True, "weight": 0}), '"weight" and "loss" contradict'),
    (CHAT, chat(USER, {**SAID, "weight": 0}), "every assistant turn has the weight 0"),
    (CHAT, chat({**USER, "tool_calls": [CALL]}, SAID), "only the assistant calls"),
    (CHAT, chat(USER, {**SAID, "tool_calls": [CALL], "function_call": CALL}), "both: keep one"),
    (CHAT, chat(USER, {**SAID, "tool_calls": [{**CALL, "parameters": {"a": 1}}]}),
     '"arguments" and "parameters" differ'),
    (CHAT, chat(USER, {**SAID, "tool_calls": [{"type": "retrieval", **CALL}]}), "not function"),
    *((CHAT, {"conversations": [{"from": "human", "value": "q"},
                                {"from": "function_call", "value": value}]}, "no JSON object")
      for value in ("call f", "[]")),
    (CHAT, chat({"role": "system", "content": "a"}, USER, SAID, system="b"),
     '"system" of the row and its system turn differ'),
    (CHAT, chat(USER, SAID, system="a", system_prompt="b"), '"system" and "system_prompt" differ'),
    (CHAT, chat(USER, SAID, system=5), '"system" is no string'),
    (CHAT, chat({**USER, "tools": [{"name": "g"}]}, SAID, tools=TOOLS),
     '"tools" of the row and those of a turn differ'),
    (CHAT, chat(USER, SAID, tools="[{"), '"tools" is not JSON'),
    (CHAT, chat(USER, SAID, tools="[{'name': 'f'}]"), "Python's text of a value"),
    (CHAT, chat(USER, SAID, tools=["search"]), r'number 1 is a string, and should be as {"name"'),
    (CHAT, chat(USER, SAID, tools='[{"name": "f", "name": "g"}]'), '"name" stands twice'),
    (CHAT, chat(USER, SAID, functions='[{"name": "f", "name": "g"}]'), '"name" stands twice'),
    *((CHAT, chat(USER, {**SAID, **call}), '"a" stands twice') for call in (
        {"tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]},
        {"tool_calls": '[{"name": "f", "arguments": {"a": 1, "a": 2}}]'},
        {"function_call": {"name": "f", "arguments": '{"a": 1, "a": 2}'}},
    )),
    (CHAT, {"conversations": [{"from": "human", "value": "q"}, {
        "from": "function_call", "value": '{"name": "f", "arguments": {"a": 1, "a": 2}}'}]},
     '"a" stands twice'),
    *((CHAT, chat(USER, {**SAID, "tool_calls": [{"name": "f", "arguments": given}]}), "holds NaN")
      for given in ({"a": float("nan")}, {"a": [float("inf")]}, '{"a": NaN}', '{"a": 1e999}')),
    (CHAT, chat(USER, SAID, tools=[{"name": "f", "default": float("nan")}]), '"tools" holds NaN'),
    (CHAT, chat({**USER, "content": ["a", "b"]}, SAID), "content part 1 is a string: write the"),
    (CHAT, {"question": "a", "instruction": "b", "output": "c"}, '"instruction" and "question"'),
    (CHAT, {"instruction": "", "input": " ", "output": "c"}, "there is no question"),
    (CHAT, {"instruction": "a", "output": ""}, "there is no answer to learn"),
    (CHAT, {"instruction": "a", "output": "b", "history": [["a"]]}, '"history" 1 is no'),
    (CHAT, {"prompt": "q", "completion": "a", "thought": float("nan")}, '"thought" is NaN, which'),
    (CHAT, {"prompt": [], "completion": "a"}, '"prompt" is no text and no list of turns'),
    (CHAT, chat({**USER, "content": [{"type": "image_url", "image_url": {"url": "a"}}]}, SAID),
     'content part 1 is of the type "image_url", and only text is read'),
    (CHAT, chat({**USER, "content": [{"type": "text"}]}, SAID), "content part 1 is null"),
    (PREFERENCE, {"prompt": "a", "chosen": [{**USER, "content": "b"}, SAID], "rejected": "d"},
     '"chosen" begins with a turn of the user, and not with the same prompt'),
    (PREFERENCE, {"prompt": "a", "chosen": "b", "rejected": "c", "messages": [USER]},
     '"prompt" and "messages" both'),
    (PREFERENCE, {"chosen": [USER, SAID], "rejected": [{**USER, "content": "p"}, SAID]},
     r'part at turn 1 \(user\)'),
    (PREFERENCE, {"chosen": "b", "rejected": "c"}, "an answer without its prompt"),
    (PREFERENCE, {"prompt": "a", "chosen": "b", "rejected": "b"}, "no preference to learn"),
    (PREFERENCE, {"chosen": "\n\nHuman: q\n\nAssistant: a"}, 'no key "rejected"'),
    (UNPAIRED, chat(USER, SAID, label=True, kto_tag=False), '"label" and "kto_tag" differ'),
    (UNPAIRED, chat(USER, {**SAID, "weight": 0}, label=True), "the weight 0, and a label"),
    (UNPAIRED, {"messages": [USER, SAID], "label": "good"}, "true or false is expected"),
    (UNPAIRED, {"messages": [USER, SAID], "label": 1}, "write true for an answer that was a good"),
    (PROMPT, {"prompt": "a", "answer": float("nan")}, '"answer" holds NaN'),
    (PROMPT, {"prompt": "a", "gt": 1, "answer": 2}, '"gt" and "answer" differ'),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "said"), CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(
    cache_of: MakeCache, format: Format, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        cache_of(format, row)
    assert "rows.jsonl:1: " in str(caught.value)
