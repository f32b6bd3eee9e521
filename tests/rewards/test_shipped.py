"""The shipped rewards give what their rules say, for whatever a model writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_rollouts import rollout

from minimind.errors import ConfigError
from minimind.rewards import shipped
from minimind.rewards.tagged_text import answer_text

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def call(name: str = "weather", arguments: Any = None) -> str:
    written = json.dumps({"name": name, "arguments": {} if arguments is None else arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "Yes."),
        ("<think>\nHm.\n</think>\n\nYes.\n", "Yes."),
        ("Hm.\n</think>\n\nYes.", "Yes."),
        ("<think>Hm.", ""),
        (f"<think>\n\n</think>\n\nLet me look.\n{call()}\n{call()}", "Let me look."),
        ("Look: <tool_call>{", "Look:"),
    ],
)
def test_an_answer_is_without_thought_and_calls(text: str, answer: str) -> None:
    assert answer_text(text) == answer


@pytest.mark.parametrize(
    ("answer", "gt", "is_same"),
    [
        ("The  Sela.", "the sela", True),
        ("是蓝色的。", "是蓝色的", True),
        ("１５！", "15", True),
        ("15", 15, True),
        ("15.0.", 15, True),
        ("It is 15.", 15, True),
        ("It is 15.", "15", False),
        ("sela", ["lumor", "Sela"], True),
        ("sela", ["lumor", 3, None], False),
        ("true", True, True),
        ("", "", False),
        ("sela", None, False),
        ("sela", {"a": 1}, False),
        ("1", True, False),
    ],
)
def test_exact_match(answer: str, gt: Any, is_same: bool) -> None:
    assert shipped.exact_match(rollout(answer, gt=gt)) == float(is_same)


@pytest.mark.parametrize(
    ("answer", "gt", "is_same"),
    [
        ("6 plus 9 is 15.", "15", True),
        ("是 １５。", 15, True),
        ("It is 15, not 16.", 15, False),
        ("1,234", 1234, True),
        ("41，42，43", "43", True),
        ("23,24", 24, True),
        ("10-12", 12, True),
        ("x = -5", -5, True),
        ("−5", "-5", True),
        ("It is 0.30", 0.3, True),
        ("2e3", 2000, True),
        ("15", "It is 15.", True),
        ("15", ["16", 15], True),
        ("none", "15", False),
        ("15", "none", False),
        ("9" * 5000, "9" * 5000, False),
        ("1", True, False),
        ("1", float("nan"), False),
        ("1", 10**400, False),
    ],
)
def test_exact_match_of_the_last_number(answer: str, gt: Any, is_same: bool) -> None:
    assert shipped.exact_match(rollout(answer, gt=gt), part="number") == float(is_same)


def test_length_window_includes_its_ends() -> None:
    found = [shipped.length_window(rollout(num_tokens=n), least=5, most=8) for n in (4, 5, 8, 9)]
    assert found == [0.0, 1.0, 1.0, 0.0]
    one = rollout("<think>\nlong\n</think>\n\nshort")
    assert shipped.length_window(one, least=5, most=5, unit="characters") == 1.0


@pytest.mark.parametrize(
    ("completion", "is_good"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", True),
        (f"<think>\nHm.\n</think>\n\n{call()}", True),
        ("<think>\n\n</think>\n\nYes.", False),
        ("Yes.", False),
        ("Hm.</think>Yes.", False),
        ("<think>Hm.", False),
        ("<think>Hm.</think>\n", False),
        ("<think>Hm.</think>Yes.</think>", False),
        ("<think>Hm.</think>Yes.<think>", False),
        ("Now <think>Hm.</think>Yes.", False),
        ("<think>Hm.<tool_call></think>Yes.", False),
    ],
)
def test_thinking_format(completion: str, is_good: bool) -> None:
    assert shipped.thinking_format(rollout(completion)) == float(is_good)


def test_thinking_may_be_empty_or_must_be_longer() -> None:
    assert shipped.thinking_format(rollout("<think>\n</think>\nYes."), least=0) == 1.0
    assert shipped.thinking_format(rollout("<think>\nHm.\n</think>\nYes."), least=4) == 0.0


@pytest.mark.parametrize(
    ("completion", "is_good"),
    [
        (call(), True),
        (f"<think>\nHm.\n</think>\n\nLet me look.\n{call()}\n{call()}", True),
        (f"{call()}{call('wether')}", False),
        (call(arguments=[1]), False),
        (f"<think>{call()}</think>Yes.", False),
        ('<tool_call>{"name": "weather"}</tool_call>', False),
        ('<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>', False),
        ('<tool_call>{"name": "weather", "arguments": {}}', False),
        (f"{call()}</tool_call>", False),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", False),
        ("Yes.", False),
    ],
)
def test_tool_call_format(completion: str, is_good: bool) -> None:
    asked = [{"role": "user", "content": "?", "tools": TOOLS}]
    rows: tuple[dict[str, Any], ...] = (
        {"messages": asked},
        {"row": {"conversations": asked}},
        {"row": {"tools": json.dumps(TOOLS)}},
    )
    for fields in rows:
        found = shipped.tool_call_format(rollout(completion, **fields))
        assert found == float(is_good)


def test_any_name_will_do_where_the_row_lists_no_tools() -> None:
    assert shipped.tool_call_format(rollout(call("anything"))) == 1.0


def test_tool_used() -> None:
    def used(*contents: str) -> float:
        roles = {"t": "tool"}
        turns = [{"role": roles.get(one, "assistant"), "content": one} for one in contents]
        return shipped.tool_used(rollout(turns=turns))

    assert used(call(), "t", "It is 20.") == 1.0
    assert used("Yes.") == used(call()) == used("<tool_call>{</tool_call>", "t") == 0.0


@pytest.mark.parametrize(
    ("completion", "penalty"),
    [
        ("a b c a b c", -0.25),
        ("a b c d", 0.0),
        ("a, b. c! A b C", -0.25),
        ("你好吗你好吗", -0.25),
        ("a b", 0.0),
        ("no " * 102, -0.5),
    ],
)
def test_repetition_penalty(completion: str, penalty: float) -> None:
    assert shipped.repetition_penalty(rollout(completion), most=0.5) == penalty


def test_arguments_that_make_no_sense_are_errors() -> None:
    one: Any = rollout()
    wrong: Any = "words"
    for broken in (
        lambda: shipped.exact_match(one, part=wrong),
        lambda: shipped.length_window(one, unit=wrong),
        lambda: shipped.length_window(one, least=9, most=8),
        lambda: shipped.repetition_penalty(one, ngram=0),
    ):
        with pytest.raises(ConfigError):
            broken()


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": ', "１", "-", ",", " "]
TEXTS = st.lists(st.sampled_from(TAGS) | st.text(max_size=4), max_size=8).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": st.sampled_from(["assistant", "tool"]), "content": JSON, "tools": JSON},
    ),
    max_size=3,
)


@settings(max_examples=150)
@given(text=TEXTS, gt=JSON, row=JSON, turns=TURNS)
def test_no_rollout_makes_them_raise(text: str, gt: Any, row: Any, turns: Any) -> None:
    one = rollout(text, gt=gt, row={"x": row, "tools": row}, turns=turns, messages=turns)
    assert shipped.exact_match(one) in (0.0, 1.0)
    assert shipped.exact_match(one, part="number") in (0.0, 1.0)
    assert shipped.length_window(one) in (0.0, 1.0)
    assert shipped.thinking_format(one) in (0.0, 1.0)
    assert shipped.tool_call_format(one) in (0.0, 1.0)
    assert shipped.tool_used(one) in (0.0, 1.0)
    assert -1.0 <= shipped.repetition_penalty(one, ngram=1) <= 0.0
