"""Rows of conversations: which are good, what is wrong with the others."""

from __future__ import annotations

import pytest
from chats import ANSWER, USER
from data_checks import check_middle_is_bad
from data_rows import as_rows

from minimind.data.chat_format import EMPTY_THINKING, SYSTEM_PROMPTS, chat_samples
from minimind.data.jsonl import BadRow
from minimind.data.tokenizer import Tokenizer
from minimind.types import Row, Sample

CALL = {"name": "f", "arguments": {}}


def call(**changes: object) -> dict[str, object]:
    return {"role": "assistant", "content": "", "tool_calls": [{**CALL, **changes}]}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], '"conversations" is empty'),
        ("string", '"conversations" is a string where a list of turns is expected'),
        ({"role": "user"}, '"conversations" is an object where'),
        ([USER], '"conversations" has no assistant turn'),
        ([USER, "hi"], 'turn 2 of "conversations" is a string where an object'),
        ([{**USER, "role": "alien"}, ANSWER], 'turn 1 of "conversations": the role is "alien"'),
        ([{"content": "q"}, ANSWER], "the role is missing; it must be one of system, user, assist"),
        ([{**USER, "role": ["user"]}, ANSWER], 'the role is ["user"]'),
        ([{"role": "user"}, ANSWER], 'turn 1 of "conversations" (user) has no "content"'),
        ([{**USER, "content": None}, ANSWER], '(user): "content" is null where a string'),
        ([{**USER, "content": ["q"]}, ANSWER], '(user): "content" is a list where a string'),
        ([USER, {**ANSWER, "content": ""}], '(assistant): "content" is empty'),
        ([USER, {**ANSWER, "content": " \n"}], '(assistant): "content" is blank'),
        ([USER, ANSWER, {"role": "tool", "content": 5}], '(tool): "content" is a number'),
        ([{**USER, "content": "\ud800"}, ANSWER], "half a character"),
        ([USER, {**ANSWER, "reasoning_content": 1}], '"reasoning_content" is a number'),
        ([{**USER, "tools": "[{"}, ANSWER], '"tools" is not JSON'),
        ([{**USER, "tools": {"name": "f"}}, ANSWER], '"tools" is not a list of objects'),
        ([{**USER, "tools": [CALL]}, {**ANSWER, "tools": [CALL]}], "and an earlier turn too"),
        ([{**USER, "tools": [{"\udc00": 1}]}, ANSWER], "the conversation holds half a character"),
        ([USER, {**ANSWER, "tool_calls": "x"}], '"tool_calls" is not JSON'),
        ([USER, {**ANSWER, "tool_calls": ["x"]}], '"tool_calls" is not a list of objects'),
        ([USER, call(name=None)], '(assistant): tool call 1 has no "name"'),
        ([USER, call(function="f")], 'tool call 1 has no "name"'),
        ([USER, call(arguments="{")], 'tool call 1: "arguments" is not JSON'),
        ([USER, call(arguments=[1])], 'tool call 1: "arguments" is a list where an object'),
        ([USER, call(arguments="3")], '"arguments" is a number where an object'),
    ],
)
def test_bad_rows_do_not_disturb_their_neighbours(
    tokenizer: Tokenizer, turns: object, reason: str
) -> None:
    rows = as_rows(*({"conversations": each} for each in ([USER, ANSWER], turns, [USER, ANSWER])))
    check_middle_is_bad(chat_samples(rows, tokenizer), reason)


@pytest.mark.parametrize(
    "turns",
    [
        [ANSWER],
        [{"role": "system", "content": ""}, USER, ANSWER],
        [{"role": "system", "tools": "[]"}, USER, ANSWER],
        [USER, call(), {"role": "tool", "content": ""}, ANSWER],
        [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]}],
        [USER, call(arguments='{"a": 1}')],
        [{**USER, "tools": None, "extra": 5}, {**ANSWER, "tool_calls": ""}],
    ],
)
def test_good_rows(tokenizer: Tokenizer, turns: object) -> None:
    (sample,) = chat_samples(as_rows({"conversations": turns}), tokenizer)
    assert isinstance(sample, Sample), sample
    assert sample.is_target.any()
    assert not sample.is_target.all()


def test_another_key_is_named(tokenizer: Tokenizer) -> None:
    (bad,) = chat_samples(as_rows({"messages": []}), tokenizer)
    assert isinstance(bad, BadRow)
    assert "no key \"conversations\" (keys found: 'messages')" in bad.reason


def test_a_template_that_refuses_names_the_line(tokenizer: Tokenizer) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    config = {**tokenizer._config, "chat_template": template}
    strict = Tokenizer(tokenizer._spec, config, "strict")
    turns = ([USER, ANSWER], [{**USER, "role": "tool"}, ANSWER])
    good, bad = chat_samples(as_rows(*({"conversations": each} for each in turns)), strict)
    assert isinstance(good, Sample)
    assert isinstance(bad, BadRow)
    assert "no tools here" in bad.reason


def texts(tokenizer: Tokenizer, rows: list[Row], **options: float) -> list[str]:
    samples = chat_samples(rows, tokenizer, **options)  # type: ignore[arg-type]
    return [tokenizer.decode(sample.ids, False) for sample in samples]  # type: ignore[union-attr]


def test_augmentation_follows_seed_and_line_alone(tokenizer: Tokenizer) -> None:
    rows = as_rows(*[{"conversations": [USER, ANSWER]}] * 300)
    plain = texts(tokenizer, rows)[0]
    options = {"system_prompt_ratio": 0.3, "empty_think_ratio": 0.4}
    found = texts(tokenizer, rows, **options, seed=1)
    assert texts(tokenizer, rows[100:], **options, seed=1) == found[100:]
    assert texts(tokenizer, rows, **options, seed=2) != found
    prompted = [text for text in found if text.startswith("<|im_start|>system\n")]
    thinking = [text for text in found if EMPTY_THINKING in text]
    assert 60 <= len(prompted) <= 120
    assert 90 <= len(thinking) <= 150
    turns = {text.split("\n")[1].removesuffix("<|im_end|>") for text in prompted}
    assert turns == set(SYSTEM_PROMPTS)
    for text in found:
        assert text.endswith((plain, plain.replace(EMPTY_THINKING, "")))


def test_augmentation_leaves_system_turns_tools_and_thoughts(tokenizer: Tokenizer) -> None:
    thoughtful = {**ANSWER, "reasoning_content": "hm"}
    rows = as_rows(
        {"conversations": [{"role": "system", "content": "s"}, USER, thoughtful]},
        {"conversations": [{**USER, "tools": [{"name": "f"}]}, thoughtful]},
    )
    options = {"system_prompt_ratio": 1.0, "empty_think_ratio": 0.0}
    assert texts(tokenizer, rows, **options) == texts(tokenizer, rows)
