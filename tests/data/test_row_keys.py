"""No key of a row vanishes: at each level it is used, refused, or reported with a count."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from chat_rows import CALL, FORMATS, SAID, TOOLS, USER, chat
from data_rows import MakeCache, as_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data.chat_format import CHAT
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, RowProblem
from minimind.data.preference_format import PREFERENCE
from minimind.data.prompt_format import PROMPT
from minimind.data.rows import DIALECTS
from minimind.data.text_format import TEXT
from minimind.data.tokenizer import Tokenizer
from minimind.data.turn_keys import (
    CALLS,
    FUNCTIONS,
    PARTS,
    REASONING,
    SHAREGPT_TURNS,
    TURNS,
    UNLEARNED,
    WEIGHTS,
)
from minimind.data.unpaired_format import UNPAIRED
from minimind.errors import DataError
from minimind.types import PairSample, Sample


def test_keys_that_are_not_read_are_counted_once(
    cache_of: MakeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}
    call = {"id": "call_1", "type": "function", "function": {**CALL, "strict": True}}
    rows = [
        chat(USER, SAID, source="web", id=1),
        chat(USER, SAID, source="web", id=0, score=False),
        chat({**USER, "name": "Ann"}, SAID, {**USER, "name": "Bo"}, SAID, source=None, tags=[]),
        chat({**USER, "content": [part]}, SAID),
        chat(
            {**USER, "tools": TOOLS},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": "1"},
        ),
    ]
    expected = {
        "'id'": 2,
        "'name' of turns": 2,
        "'source'": 2,
        "'cache_control' of content parts": 1,
        "'id' of tool calls": 1,
        "'score'": 1,
        "'strict' of tool calls": 1,
        "'tool_call_id' of turns": 1,
    }
    for _ in ("built", "reused"):
        caplog.clear()
        cache = cache_of(CHAT, *rows)
        assert cache.unread == expected
        (said,) = caplog.messages
        counted = ", ".join(f"{name} ({count})" for name, count in expected.items())
        assert said == (
            f"{tmp_path / 'rows.jsonl'}: of 5 rows some carry what is not read: {counted}"
        )


SLIPS = [
    (CHAT, {"conversation": [USER, SAID]}, 'in no form of row .*did you mean "conversations"'),
    (CHAT, chat(USER, SAID, tool=TOOLS), 'the key "tool" is not read .did you mean "tools"'),
    (CHAT, chat({"role": "user", "contnet": "q"}, SAID), 'no key "content" of turns: the key "con'),
    (CHAT, chat({**USER, "contents": "x"}, SAID), 'turn 1 .* "contents" .*did you mean "content"'),
    (CHAT, chat(USER, {**SAID, "tool_call": [CALL]}), 'did you mean "tool_calls"'),
    (CHAT, chat(USER, {**SAID, "toolCalls": [CALL]}), 'did you mean "tool_calls"'),
    (CHAT, chat(USER, {**SAID, "reasonning_content": "r"}), 'did you mean "reasoning_content"'),
    (CHAT, chat(USER, {**SAID, "reasoning_contents": "r"}), 'did you mean "reasoning_content"'),
    (CHAT, chat(USER, {**SAID, "weights": 0}), 'did you mean "weight"'),
    (CHAT, chat(USER, {**SAID, "tool_calls": [{"name": "f", "argument": {}}]}),
     'the key "argument" of tool calls is not read .did you mean "arguments"'),
    (CHAT, chat({**USER, "content": [{"type": "text", "texts": "q"}]}, SAID),
     'the key "texts" of content parts is not read'),
    (CHAT, {"messages": [{"Role": "user", "content": "q"}, SAID]}, 'did you mean "role"'),
    (CHAT, {"conversations": [{"from": "human", "valeu": "q"}]}, 'did you mean "value"'),
    (CHAT, {"instruction": "a", "inputs": "b", "output": "c"}, 'did you mean "input"'),
    (TEXT, {"Text": "a"}, 'did you mean "text"'),
    (TEXT, {"text": "a", "texts": "b"}, 'did you mean "text"'),
    (PREFERENCE, {"promt": "a", "chosen": "b", "rejected": "c"}, 'did you mean "prompt"|without'),
    (PREFERENCE, {"prompt": "a", "choosen": "b", "rejected": "c"}, 'no key "chosen": the key'),
    (UNPAIRED, chat(USER, SAID, labels=True), 'no key "label": the key "labels"'),
    (PROMPT, {"conversation": [USER], "gt": 1}, 'did you mean "conversations"'),
]  # fmt: skip

MEANING = [
    (CHAT, chat(USER, SAID, images=["a.png"]), 'the key "images": the models read text alone'),
    (CHAT, chat({**USER, "image": "a.png"}, SAID), 'turn 1 .*the key "image" of turns: the models'),
    (CHAT, chat(USER, SAID, mask="User"), "means the opposite in different projects"),
    (CHAT, chat(USER, {**SAID, "mask": True}), "means the opposite in different projects"),
    (CHAT, chat(USER, SAID, weight=0.5), "weights of whole rows are not read"),
    (CHAT, chat(USER, SAID, label=False), "a row with a label is for --stage kto"),
    (CHAT, chat(USER, SAID, kto_tag=True), "a row with a label is for --stage kto"),
    (CHAT, chat(USER, SAID, chosen=SAID), "a preference pair is for --stage dpo"),
    (CHAT, chat(USER, SAID, messages=[USER, SAID]), "a second conversation in one row"),
    (CHAT, chat(USER, {**SAID, "refusal": "no"}), 'write the text of a refusal as "content"'),
    (CHAT, chat(USER, {**SAID, "from": "gpt"}), "is of ShareGPT's form"),
    (PREFERENCE, {"chosen": [USER, SAID], "rejected": [USER, SAID], "images": ["a"]}, "text alone"),
    *((CHAT, chat(USER, SAID, label=value), "a row with a label is for --stage kto")
      for value in (0, 1, "false", "Bad", "rejected", "1")),
    (CHAT, chat(USER, SAID, kto_tag="false"), "a row with a label is for --stage kto"),
    (CHAT, chat(USER, SAID, is_correct=False), "says that its answer is not a good one"),
    (CHAT, chat(USER, SAID, train=False), "says that it is not to be learned"),
    (CHAT, chat(USER, SAID, deleted=True), "says that it is not to be learned"),
    (CHAT, chat(USER, SAID, loss_mask=[0, 1]), "means the opposite in different projects"),
    (CHAT, chat(USER, SAID, sample_weight=0.5), "weights of whole rows are not read"),
    (CHAT, chat(USER, SAID, train_on_inputs=True), "only the assistant's turns are targets"),
    *((CHAT, chat(USER, SAID, **{key: "Talk like a pirate"}), f'the key "{key}": holds a text')
      for key in ("instruction", "context", "persona", "prompt")),
    (CHAT, chat(USER, SAID, documents=["q", "Rome fell"]), "holds a text that is in no turn"),
    (CHAT, chat(USER, SAID, reasoning="since"), "holds reasoning that is in no turn"),
    (CHAT, chat(USER, SAID, USER, response="b"), "the turns end before it"),
    (CHAT, {"question": "q", "answer": "a", "reasoning": "on"}, '"reasoning" is "on", which is no'),
    (CHAT, {"prompt": "q", "completion": "a", "context": "Rome"}, "text that is in no turn"),
    *((CHAT, chat(USER, {**SAID, key: value}), said) for key, value, said in (
        ("train_detail", [{"begin_offset": 0, "train": False}], "parts of a turn cannot be chosen"),
        ("loss_masked", 0, "seems to say what is learned"),
        ("doTrain", False, "seems to say what is learned"),
        ("token_weights", [0, 1], "seems to say what is learned"),
        ("reason", "since", 'call it "reasoning_content"'),
        ("context", "Rome", 'write it into "content"'),
        ("channel", "analysis", 'as "reasoning_content"'),
        ("functions", TOOLS, 'as "tools"'),
        ("tool_calls", [{"name": "f", "args": {"a": 1}}], 'is called with as "arguments"'),
    )),
    (PREFERENCE, {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0.0}, "of whole rows"),
    (PREFERENCE, {"prompt": "q", "chosen": "a", "rejected": "b", "label": 0}, "the better one is"),
    (PREFERENCE, {"chosen": [USER, SAID], "rejected": [USER, CALL], "persona": "pirate"},
     "holds a text that is in no turn"),
    *((PREFERENCE, {"prompt": "q", "chosen": "a", "rejected": "b", **scores}, "is the better one")
      for scores in ({"score_chosen": 1.0, "score_rejected": 9.0},
                     {"chosen-rating": 1, "rejected-rating": 2})),
    (PREFERENCE, {"prompt": "What is it?", "chosen": "What is it? A cat",
                  "rejected": "What is it? A dog"}, "begin with the prompt again"),
    (UNPAIRED, chat(USER, SAID, label=True, chosen="a"), "--stage dpo"),
    (PROMPT, chat(USER, images=["a.png"]), "text alone"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "said"), [*SLIPS, *MEANING])
def test_a_slip_and_a_key_that_changes_the_meaning_are_refused(
    cache_of: MakeCache, format: Format, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        cache_of(format, row)


REPORTED = [
    (CHAT, chat(USER, SAID, label="science"), "'label'"),
    (CHAT, chat(USER, SAID, weight=1), "'weight'"),
    (CHAT, chat(USER, SAID, loss=0.25), "'loss'"),
    (CHAT, chat(USER, SAID, cost=0.1), "'cost'"),
    (CHAT, chat(USER, SAID, deleted=False), "'deleted'"),
    (CHAT, chat(USER, SAID, reasoning="on"), "'reasoning'"),
    (CHAT, chat({**USER, "content": "q  it\nis"}, SAID, prompt="q it is"), "'prompt'"),
    (CHAT, chat(USER, {**SAID, "thinking": "r"}, analysis="r"), "'analysis'"),
    (CHAT, chat(USER, SAID, answer="42"), "'answer'"),
    (CHAT, chat(USER, {**SAID, "channel": "final"}), "'channel' of turns"),
    (CHAT, chat(USER, {**SAID, "labels": {"quality": 0.5}}), "'labels' of turns"),
    (PREFERENCE, {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2,
                  "score_rejected": 1}, "'score_chosen' 'score_rejected'"),
    (PREFERENCE, {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_rank": 1,
                  "rejected_rank": 2}, "'chosen_rank' 'rejected_rank'"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "keys"), REPORTED)
def test_a_key_that_changes_nothing_is_reported(
    cache_of: MakeCache, format: Format, row: dict[str, Any], keys: str
) -> None:
    assert cache_of(format, row).unread == dict.fromkeys(re.findall(r"'\w+'(?: of \w+)?", keys), 1)


@pytest.mark.parametrize("turn", [
    *({key: value} for key in WEIGHTS for value in (0, False)),
    *({key: value} for key in UNLEARNED for value in (1, True)),
])  # fmt: skip
def test_every_name_of_a_weight_takes_a_turn_out(
    cache_of: MakeCache, tokenizer: Tokenizer, turn: dict[str, Any]
) -> None:
    bad = {"role": "assistant", "content": "b", **turn}
    cache = cache_of(CHAT, chat(USER, bad, {**USER, "ignore": False}, {**SAID, "ignore": 0}))
    is_target = cache.is_target(0)
    assert is_target is not None
    learned = tokenizer.decode(cache.tokens(0)[is_target].tolist())
    assert ("a" in learned, "b" in learned) == (True, False)
    assert not cache.unread


@pytest.mark.parametrize("key", REASONING)
def test_reasoning_has_many_names(cache_of: MakeCache, key: str) -> None:
    """On its turn, and beside a question and its answer."""
    keys = {cache_of(CHAT, chat(USER, {**SAID, "reasoning_content": "r"})).tokens(0).tobytes()}
    keys.add(cache_of(CHAT, chat(USER, {**SAID, key: "r"})).tokens(0).tobytes())
    keys.add(cache_of(CHAT, {"question": "q", "answer": "a", key: "r"}).tokens(0).tobytes())
    keys.add(cache_of(CHAT, {"prompt": "q", "completion": "a", key: "r"}).tokens(0).tobytes())
    assert len(keys) == 1


ROW_KEYS = sorted({key for kind in DIALECTS.values() for one in kind for key in one.keys.used})
TURN_KEYS = sorted({*TURNS.used, *SHAREGPT_TURNS.used, *CALLS.used, *PARTS.used})
WORDS = ("user", "human", "assistant", "gpt", "function_call", "tool", "text", "thinking", "{}", "",
         "[]", "\n\nHuman: q\n\nAssistant: a")  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)

TURN = st.dictionaries(st.sampled_from(TURN_KEYS), VALUES, min_size=1, max_size=4)
TURN_OF_ROLE = TURN.flatmap(
    lambda turn: st.sampled_from(WORDS).map(lambda role: {**turn, "role": role})
)


@settings(max_examples=150, derandomize=True)
@given(
    row=st.dictionaries(
        st.sampled_from(ROW_KEYS),
        VALUES | st.lists(TURN_OF_ROLE, max_size=3),
        min_size=1,
        max_size=4,
    )
)
@pytest.mark.parametrize("kind", FORMATS)
def test_no_row_breaks_the_reader(tokenizer: Tokenizer, kind: str, row: dict[str, Any]) -> None:
    """Whatever a row holds, it is read, or a reason is given."""
    for dialect in DIALECTS.get(kind, ()):
        if dialect.matches(row):
            try:
                data = dialect.read(row, set())
            except RowProblem:
                continue
            (sample,) = FORMATS[kind].read(as_rows(data), tokenizer)
            assert isinstance(sample, Sample | PairSample | BadRow)


def test_no_key_is_both_used_and_refused() -> None:
    of_rows = [dialect.keys for kind in DIALECTS.values() for dialect in kind]
    for table in (*of_rows, TURNS, SHAREGPT_TURNS, CALLS, FUNCTIONS, PARTS):
        assert not set(table.used) & set(table.refused)
