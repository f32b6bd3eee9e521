"""Questions that only a tool can answer, and conversations that ask them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from minimind.samples.text import Dice
from minimind.samples.tools import TOOL_SCHEMAS, TOOLS
from minimind.samples.world import PEOPLE, THINGS

MAX_SUM = 99
"""Sums up to 20 are in the text; these are larger, of numbers that the text counts with."""
REQUESTED_PERCENT = 35
"""How many of the conversations with tools request the use of one, in so many words, and get it:
there a model learns how to call."""
REQUEST_EN, REQUEST_ZH = "Use a tool. ", "请用工具。"
"""How a question that requests a tool begins. No prompt of the sample tasks begins so."""
CALLED_ONE_IN = 7
"""How often a tool is called without a request; else the answer is not known. That it pays to call
is left to reinforcement learning."""


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """Holds a question, the call that answers it and the tool's answer."""

    question: str
    tool: str
    arguments: dict[str, str]
    answer: int
    in_english: bool
    is_shown: bool
    """Conversations ask it. Else, in any wording, it is for prompts alone: by the hash of what it
    asks for, half of all questions each."""


def pick_tool_question(dice: Dice, in_english: bool, *, is_shown: bool) -> ToolQuestion:
    """Draws a sum or a fact, of those that conversations show or of the others."""
    while True:
        ask = dice.pick((_sum, _fact))
        question = ask(dice, in_english)
        if question.is_shown == is_shown:
            return question


def tools_turn() -> dict[str, str]:
    """Gives the system turn that offers the tools."""
    return {"role": "system", "content": "", "tools": json.dumps(TOOL_SCHEMAS)}


def tool_conversation(dice: Dice) -> tuple[dict[str, Any], list[str], bool]:
    """Draws a conversation with tools as the sample's rows are: a question that is answered through
    its tool on request and now and then without, and else with not knowing."""
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
    """`asked_for` is the same in both languages."""
    digest = hashlib.blake2b(asked_for.encode(), digest_size=4, person=b"shown").digest()
    answer = int(TOOLS[tool](**arguments))
    return ToolQuestion(question, tool, arguments, answer, in_english, digest[0] % 2 == 0)
