"""Generates the sample prompts for reinforcement learning: questions whose answers can be checked,
and questions that only a tool can answer."""

from __future__ import annotations

from collections.abc import Iterator

from minimind.samples.files import SampleData
from minimind.samples.text import SUMS, Dice, SampleRow, pick_count, spell_numbers
from minimind.samples.tool_use import pick_tool_question, tools_turn
from minimind.samples.world import HELD_OUT_COUNTS, HELD_OUT_SUMS

SUM_WORDINGS_EN = ("How much is {a} plus {b}?", "Add {a} and {b}.", "{a} plus {b} is what?")
SUM_WORDINGS_ZH = ("{a} 加上 {b} 等于几？", "请算 {a} + {b}。", "{a} 和 {b} 一共是多少？")
"""How the prompts word a sum. No other sample data uses these wordings, so a right answer shows
that the model has generalised."""
COUNT_WORDINGS = ("Name the numbers from {a} to {b}.", "请说出从{a}到{b}的数字。")
SORT_WORDINGS = ("Sort {a}, {b}, {c}.", "请给 {a}、{b}、{c} 排序。")
OTHER_ONE_IN = 8
"""One prompt in so many asks to count, and one in so many to sort; all others ask for a sum."""


def prompt_rows(seed: int) -> Iterator[SampleRow]:
    """Yields endless rows of prompts: sums, counting, and numbers to sort."""
    dice = Dice(seed)
    while True:
        in_english = dice.below(2) == 0
        kind = dice.below(OTHER_ONE_IN)
        if kind == 0:
            yield _count(dice, in_english)
        elif kind == 1:
            yield _sort(dice, in_english)
        else:
            wording = dice.pick(SUM_WORDINGS_EN if in_english else SUM_WORDINGS_ZH)
            yield _sum(wording, dice.pick(SUMS))


def sum_rows(seed: int) -> Iterator[SampleRow]:
    """Yields every sum in every wording once, in random order. The validation data is exactly the
    held-out sums."""
    wordings = (*SUM_WORDINGS_EN, *SUM_WORDINGS_ZH)
    rows = [_sum(wording, pair) for pair in SUMS for wording in wordings]
    for row, _, is_held_out in Dice(seed).some(rows, len(rows), len(rows)):
        yield row, [], is_held_out


def tool_rows(seed: int) -> Iterator[SampleRow]:
    """Yields endless prompts that need a tool; no conversation of the chat data asks the same
    question."""
    dice = Dice(seed)
    while True:
        one = pick_tool_question(dice, dice.below(2) == 0, is_shown=False)
        row = {
            "conversations": [tools_turn(), {"role": "user", "content": one.question}],
            "gt": one.answer,
        }
        yield row, [one.question], False


def _sum(wording: str, pair: tuple[int, int]) -> SampleRow:
    question = wording.format(a=pair[0], b=pair[1])
    return _prompt(question, sum(pair), is_held_out=pair in HELD_OUT_SUMS)


def _count(dice: Dice, in_english: bool) -> SampleRow:
    first, last = pick_count(dice)
    question = COUNT_WORDINGS[not in_english].format(a=first, b=last)
    answer = spell_numbers(range(first, last + 1), in_english)
    return _prompt(question, answer, is_held_out=(first, last) in HELD_OUT_COUNTS)


def _sort(dice: Dice, in_english: bool) -> SampleRow:
    numbers = dice.some(range(1, 100), 3, 3)
    a, b, c = numbers
    question = SORT_WORDINGS[not in_english].format(a=a, b=b, c=c)
    return _prompt(question, spell_numbers(sorted(numbers), in_english), is_held_out=False)


def _prompt(question: str, gt: int | str, *, is_held_out: bool) -> SampleRow:
    turns = [{"role": "user", "content": question}]
    return {"conversations": turns, "gt": gt}, [question], is_held_out


PROMPT_DATA = SampleData(name="prompts", rows=prompt_rows, train_bytes=200_000, val_bytes=25_000)
SUMS_DATA = SampleData(name="sums", rows=sum_rows, train_bytes=1_000_000, val_bytes=1_000_000)
"""Every sum: the byte limits are larger than all rows together."""
TOOLS_DATA = SampleData(name="tools", rows=tool_rows, train_bytes=400_000, val_bytes=50_000)
