"""Reasoning, answer and tool calls are told apart however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.inference.answer_parser import (
    AnswerParser,
    Content,
    Part,
    Reasoning,
    ToolCall,
    opens_reasoning,
)

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "塔"]}}\n</tool_call>'
F = ("call", "f", {"a": [1, "塔"]})
TAGGED = '<tool_call>\n{"name": "g", "arguments": {"a": "</tool_call>\\""}}\n</tool_call>'
G = ("call", "g", {"a": '</tool_call>"'})
BROKEN = '<tool_call>{"name": "f</tool_call>'


def parse(pieces: list[str], in_reasoning: bool = False, with_tools: bool = True) -> list[tuple]:
    """Neighbours of one kind joined, calls as ("call", name, arguments)."""
    parser = AnswerParser(in_reasoning=in_reasoning, with_tools=with_tools)
    parts: list[Part] = [part for piece in pieces for part in parser.push(piece)]
    found: list[tuple] = []
    for part in [*parts, *parser.flush()]:
        match part:
            case ToolCall(id, name, arguments):
                assert id.startswith("call_")
                found.append(("call", name, json.loads(arguments)))
            case Reasoning(text) | Content(text):
                kind = "think" if isinstance(part, Reasoning) else "say"
                if found and found[-1][0] == kind:
                    found[-1] = (kind, found[-1][1] + text)
                else:
                    found.append((kind, text))
    return found


CASES = [
    ("plain", False, [("say", "plain")]),
    ("  two\n\nlines \n", False, [("say", "  two\n\nlines \n")]),
    ("", False, []),
    ("", True, []),
    ("hm\n</think>\n\nyes", True, [("think", "hm"), ("say", "yes")]),
    ("\nhm\n\nhm\n</think>yes\n", True, [("think", "hm\n\nhm"), ("say", "yes\n")]),
    ("<think>\nhm\n</think>\n\nyes", False, [("think", "hm"), ("say", "yes")]),
    ("\n<think>hm", False, [("think", "hm")]),
    ("cut off </thin", True, [("think", "cut off </thin")]),
    ("\n</think>\n\nyes", True, [("say", "yes")]),
    ("a < b </think> c", False, [("say", "a < b </think> c")]),
    ("say <think>", False, [("say", "say <think>")]),
    ("<thin", False, [("say", "<thin")]),
    (CALL, False, [F]),
    (f"{CALL}\n{CALL}", False, [F, F]),
    (f"{TAGGED}\n{CALL}", False, [G, F]),
    (f"{BROKEN}{CALL}{TAGGED}", False, [("say", BROKEN), F, G]),
    (f"{BROKEN} so", False, [("say", f"{BROKEN} so")]),
    (f"I ask\n{CALL}\n", False, [("say", "I ask"), F]),
    (f"hm\n</think>\n\n{CALL}", True, [("think", "hm"), F]),
    (f"hm {CALL}</think>x", True, [("think", f"hm {CALL}"), ("say", "x")]),
    ("<tool_call>nonsense</tool_call> x", False, [("say", "<tool_call>nonsense</tool_call> x")]),
    ('<tool_call>{"name": "f"', False, [("say", '<tool_call>{"name": "f"')]),
    ('<tool_call>{"name": "f"}', False, [("call", "f", {})]),
    ("<tool_call>[1]</tool_call>", False, [("say", "<tool_call>[1]</tool_call>")]),
    ('<tool_call>{"name": 3}</tool_call>', False, [("say", '<tool_call>{"name": 3}</tool_call>')]),
    (
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        False,
        [("say", '<tool_call>{"name": "\\ud800"}</tool_call>')],
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        False,
        [("say", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>')],
    ),
    ("a <tool", False, [("say", "a <tool")]),
]


@pytest.mark.parametrize(("text", "in_reasoning", "expected"), CASES)
def test_parts(text: str, in_reasoning: bool, expected: list[tuple]) -> None:
    assert parse([text], in_reasoning) == expected
    assert parse(list(text), in_reasoning) == expected


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", CALL, "<tool_call>", "</tool_call>", "\n", "a", " <"]),
    max_size=7,
).map("".join)


@given(
    text=PIECES,
    cuts=st.lists(st.integers(0, 200), max_size=8),
    thinks=st.booleans(),
    tools=st.booleans(),
)
def test_the_parts_do_not_depend_on_the_cuts(
    text: str, cuts: list[int], thinks: bool, tools: bool
) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert parse(pieces, thinks, tools) == parse([text], thinks, tools)


def test_without_tools_a_call_is_text() -> None:
    assert parse([CALL], with_tools=False) == [("say", CALL)]


@pytest.mark.parametrize(
    "text", [f"{CALL}\n<tool_ca", f'{CALL}\n<tool_call>\n{{"name": "g"', CALL[:-12]]
)
def test_a_call_that_must_be_made_leaves_no_text_where_it_is_cut_off(text: str) -> None:
    parser = AnswerParser(in_reasoning=False, with_tools=True, must_call=True)
    (call,) = [*parser.push(text), *parser.flush()]
    assert isinstance(call, ToolCall)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(in_reasoning=True, with_tools=True)
    given = ["so", " <", "b", "\n", "</think>", "yes", "\n", "no"]
    shown = ["so", " ", "<b", "", "", "yes", "", "\nno"]
    found = ["".join(getattr(part, "text", "?") for part in parser.push(x)) for x in given]
    assert found == shown


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("assistant\n<think>\n", True),
        ("assistant\n<think>\n\n</think>\n\n", False),
        ("assistant\n", False),
    ],
)
def test_the_prompt_says_where_the_answer_begins(tail: str, expected: bool) -> None:
    assert opens_reasoning(tail) is expected
