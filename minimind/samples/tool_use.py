"""Generates questions that only a tool can answer, and conversations that ask them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from minimind.samples.text import Dice, SampleRow
from minimind.samples.tools import TOOL_SCHEMAS, TOOLS
from minimind.samples.world import PEOPLE, THINGS

MAX_SUM = 99
"""The largest sum asked of a tool. Sums up to 20 are in the sample text; the numbers added here are
ones that the text counts with."""
REQUESTED_PERCENT = 35
"""The percentage of conversations with tools whose question asks for a tool outright and gets a
call: from these a model learns how to call."""
REQUEST_EN, REQUEST_ZH = "Use a tool. ", "请用工具。"
"""The words with which a question asks for a tool outright. No prompt of the sample tasks begins
with them."""
CALLED_ONE_IN = 7
"""Without such a request, one conversation in so many calls the tool; in the others the assistant
says that it does not know. That calling pays off is left to reinforcement learning."""


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """Holds a question, the tool call that answers it and the tool's answer."""

    question: str
    tool: str
    arguments: dict[str, str]
    answer: int
    in_english: bool
    is_shown: bool
    """True where conversations ask the question; else only prompts do, in any wording. The hash of
    the fact asked for decides, so each kind gets half of the questions."""


def pick_tool_question(dice: Dice, in_english: bool, *, is_shown: bool) -> ToolQuestion:
    """Draws a question about a sum or a fact: one that conversations show if `is_shown`, else one
    that they do not."""
    while True:
        ask = dice.pick((_sum, _fact))
        question = ask(dice, in_english)
        if question.is_shown == is_shown:
            return question


def tools_turn() -> dict[str, str]:
    """Gives the system turn that names the tools."""
    return {"role": "system", "content": "", "tools": json.dumps(TOOL_SCHEMAS)}


def tool_conversation(dice: Dice) -> SampleRow:
    """Draws a conversation with tools. The tool is called on request and in one of CALLED_ONE_IN
    other cases; otherwise the assistant says that it does not know."""
    one = pick_tool_question(dice, dice.below(2) == 0, is_shown=True)
    question = one.question
    is_requested = dice.below(100) < REQUESTED_PERCENT
    if is_requested:
        question = (REQUEST_EN if one.in_english else REQUEST_ZH) + question
    turns: list[dict[str, Any]] = [tools_turn(), {"role": "user", "content": question}]
    if is_requested or dice.below(CALLED_ONE_IN) == 0:
        call = {"name": one.tool, "arguments": one.arguments}
        answer = f"It is {one.answer}." if one.in_english else f"是 {one.answer}。"
        turns += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": json.dumps([call], ensure_ascii=False),
            },
            {"role": "tool", "content": str(one.answer)},
            {"role": "assistant", "content": answer},
        ]
    else:
        unknown = "I do not know." if one.in_english else "我不知道。"
        turns.append({"role": "assistant", "content": unknown})
    return {"conversations": turns}, [one.question], False


def _sum(dice: Dice, in_english: bool) -> ToolQuestion:
    first = 11 + dice.below(MAX_SUM - 21)
    second = 11 + dice.below(MAX_SUM - 10 - first)
    ask = "What is {a} plus {b}?" if in_english else "{a} 加 {b} 是多少？"
    expression = f"{first} + {second}"
    return _ask(
        ask.format(a=first, b=second), "calculator", {"expression": expression}, expression,
        in_english,
    )  # fmt: skip


def _fact(dice: Dice, in_english: bool) -> ToolQuestion:
    person, thing = dice.pick(PEOPLE).name, dice.pick(THINGS)
    ask = "How many {x} has {p}?" if in_english else "{p}有多少{x}？"
    name, what = (person.en, thing.en) if in_english else (person.zh, thing.zh)
    return _ask(
        ask.format(p=name, x=what), "lookup", {"name": name, "what": what},
        f"{person.en} {thing.en}", in_english,
    )  # fmt: skip


def _ask(
    question: str, tool: str, arguments: dict[str, str], asked_for: str, in_english: bool
) -> ToolQuestion:
    """Builds a question. `asked_for` names the sum or fact and is the same in both languages, so
    that both are shown or neither."""
    digest = hashlib.blake2b(asked_for.encode(), digest_size=4, person=b"shown").digest()
    answer = int(TOOLS[tool](**arguments))
    return ToolQuestion(question, tool, arguments, answer, in_english, digest[0] % 2 == 0)
