"""Generates the sample text for pretraining: sums, counting, facts and stories of a made-up world,
in English and Chinese. A fresh machine can train on it, and a reader can check what was learnt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minimind.data.tokenizer import Tokenizer
from minimind.samples.world import (
    FRUITS,
    HELD_OUT_COUNTS,
    HELD_OUT_SUMS,
    PEOPLE,
    THINGS,
    TOWNS,
    Person,
    Town,
)

ItemT = TypeVar("ItemT")
SampleRow = tuple[dict[str, Any], list[str], bool]
"""A row of sample data, its keys, and whether it is held out. The row is for validation if it is
held out, or by the hash of a key: texts that must not be in both splits."""


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """Holds a prompt, and the text with which a model that has learnt the sample text continues
    it."""

    prompt: str
    expected: str
    is_held_out: bool
    """True where the answer appears nowhere in the training text, so that the model has to work it
    out."""


SAMPLE_PROMPTS = (
    SamplePrompt("The river of Lumor is called", " the Sela.", False),
    SamplePrompt("塔恩的房子是什么颜色？", "是蓝色的。", False),
    SamplePrompt("Anya lives in", " Ovelia.", False),
    SamplePrompt("格蕾塔住在哪里？", "格蕾塔住在哈斯克。", False),
    SamplePrompt("6 + 9 =", " 15", True),
    SamplePrompt("7 加 5 等于", " 12", True),
    SamplePrompt("Count from 41 to 47:", " 41, 42, 43, 44, 45, 46, 47", True),
    SamplePrompt("从23数到28：", "23，24，25，26，27，28", True),
)


def load_sample_tokenizer() -> Tokenizer:
    """Loads the shipped tokenizer, which has 1577 tokens."""
    return Tokenizer.load(Path(__file__).parent / "tokenizer")


def text_documents(seed: int) -> Iterator[tuple[str, bool]]:
    """Yields endless (text, is_held_out); `is_held_out` is true where the text holds a sum or count
    that is kept out of training."""
    dice = Dice(seed)
    while True:
        in_english = dice.below(2) == 0
        kind = dice.pick(_KINDS)
        yield kind(dice, in_english)


class Dice:
    """Draws random choices from random.random() alone, since only its numbers are the same in all
    versions of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, bound: int) -> int:
        return int(self._random() * bound)

    def pick(self, items: Sequence[ItemT]) -> ItemT:
        return items[self.below(len(items))]

    def some(self, items: Sequence[ItemT], least: int, most: int) -> list[ItemT]:
        """Draws at least `least` and at most `most` different items, in random order."""
        left = list(items)
        count = least + self.below(most - least + 1)
        return [left.pop(self.below(len(left))) for _ in range(count)]


SUMS = tuple((first, second) for first in range(1, 20) for second in range(1, 21 - first))
_KNOWN_SUMS = tuple(pair for pair in SUMS if pair not in HELD_OUT_SUMS)
_ANY_SUMS_ONE_IN = 3
"""One text of sums in so many may hold held-out sums; the others hold none. If every text could
hold one, most would go to validation, and too few would be left to train on."""


def _sums(dice: Dice, in_english: bool) -> tuple[str, bool]:
    # Chinese text has spaces too, so that both languages share the tokens of numbers.
    form = dice.pick(
        ("{a} + {b} = {c}", "{a} plus {b} is {c}.", "What is {a} plus {b}? It is {c}.")
        if in_english
        else ("{a} + {b} = {c}", "{a} 加 {b} 等于 {c}。", "{a} 加 {b} 是多少？是 {c}。")
    )
    lines = []
    held_out = False
    sums = SUMS if dice.below(_ANY_SUMS_ONE_IN) == 0 else _KNOWN_SUMS
    for _ in range(3 + dice.below(5)):
        first, second = dice.pick(sums)
        held_out |= (first, second) in HELD_OUT_SUMS
        lines.append(form.format(a=first, b=second, c=first + second))
    return "\n".join(lines), held_out


def pick_count(dice: Dice) -> tuple[int, int]:
    """Draws the first and the last of some numbers to count."""
    first = 1 + dice.below(90)
    return first, min(100, first + 4 + dice.below(6))


def spell_numbers(numbers: Iterable[int], in_english: bool) -> str:
    """Writes numbers as a list with a full stop."""
    between, end = (", ", ".") if in_english else ("，", "。")
    return between.join(map(str, numbers)) + end


def _counting(dice: Dice, in_english: bool) -> tuple[str, bool]:
    first, last = pick_count(dice)
    asked = f"Count from {first} to {last}: " if in_english else f"从{first}数到{last}："
    numbers = spell_numbers(range(first, last + 1), in_english)
    return asked + numbers, (first, last) in HELD_OUT_COUNTS


_TOWN_FORMS_EN = (
    ("The river of {t} is called the {r}.", "The {r} flows through {t}.", "{t} lies on the {r}."),
    ("The houses of {t} are {c}.", "What colour are the houses of {t}? They are {c}."),
    ("The people of {t} keep {a}.", "What do the people of {t} keep? They keep {a}."),
    ("{t} is known for its {f}.", "The best {f} come from {t}."),
)
_TOWN_FORMS_ZH = (
    ("{t}的河叫{r}。", "{r}流过{t}。", "{t}在{r}边上。"),
    ("{t}的房子是{c}的。", "{t}的房子是什么颜色？是{c}的。"),
    ("{t}的人养{a}。", "{t}的人养什么？他们养{a}。"),
    ("{t}的{f}很有名。", "最好的{f}来自{t}。"),
)


def _town_facts(dice: Dice, in_english: bool) -> tuple[str, bool]:
    town = dice.pick(TOWNS)
    words = town_words(town, in_english)
    facts = dice.some(_TOWN_FORMS_EN if in_english else _TOWN_FORMS_ZH, 1, 4)
    text = (" " if in_english else "").join(dice.pick(forms).format(**words) for forms in facts)
    return text, False


_PERSON_FORMS_EN = (
    ("{p} lives in {t}.", "Where does {p} live? {p} lives in {t}.", "The home of {p} is {t}."),
    ("{p} is a {j}.", "{p} works as a {j}."),
    ("{S} keeps {a}.", "{S} likes {f}.", "{S} often walks along the {r}."),
)
_PERSON_FORMS_ZH = (
    ("{p}住在{t}。", "{p}住在哪里？{p}住在{t}。", "{p}的家在{t}。"),
    ("{p}是{j}。", "{p}的工作是{j}。"),
    ("{S}养{a}。", "{S}喜欢{f}。", "{S}常在{r}边散步。"),
)


def _person_facts(dice: Dice, in_english: bool) -> tuple[str, bool]:
    words = person_words(dice.pick(PEOPLE), in_english)
    home, work, habit = _PERSON_FORMS_EN if in_english else _PERSON_FORMS_ZH
    forms = [*dice.some((home, work), 1, 2), *dice.some((habit,), 0, 1)]
    text = (" " if in_english else "").join(dice.pick(form).format(**words) for form in forms)
    return text, False


_STORIES_EN = (
    "One morning {p} the {j} left {t} and walked along the {r}. {S} met {p2} from {t2}. "
    '"What do you have there?" asked {p2}. "I have {f} from {t}," said {p}. '
    "They ate together, and in the evening {p} went home to {t}.",
    "{p} had {n} {x}. {p2} gave {o} {m} more. Now {p} had {k} {x}. "
    '"Thank you," said {p}, and went home to {t}.',
    "It rained in {t}. {p} the {j} sat in a {c} house and waited. Then {p2} the {j2} came with "
    '{f2} from {t2}. "Now we can wait together," said {p2}.',
)
_STORIES_ZH = (
    "一天早上，{j}{p}离开{t}，沿着{r}走。{s}遇见了从{t2}来的{p2}。{p2}问：“你带了什么？”"
    "{p}说：“我带了{t}的{f}。”他们一起吃，晚上{p}回到了{t}。",
    "{p}有{n}个{x}。{p2}又给了{s}{m}个。现在{p}有{k}个{x}。{p}说：“谢谢！”然后回到了{t}。",
    "{t}下雨了。{j}{p}坐在{c}的房子里等着。后来{j2}{p2}带着{t2}的{f2}来了。"
    "{p2}说：“现在我们可以一起等。”",
)


def _story(dice: Dice, in_english: bool) -> tuple[str, bool]:
    hero, friend = dice.some(PEOPLE, 2, 2)
    words = person_words(hero, in_english)
    words |= {f"{key}2": word for key, word in person_words(friend, in_english).items()}
    total = 2 + dice.below(19)
    first = 1 + dice.below(total - 1)
    fruit = dice.pick(FRUITS)
    words |= {"n": str(first), "m": str(total - first), "k": str(total)}
    words["x"] = fruit.en if in_english else fruit.zh
    story = dice.pick(_STORIES_EN if in_english else _STORIES_ZH)
    held_out = "{n}" in story and (first, total - first) in HELD_OUT_SUMS
    return story.format(**words), held_out


_NOTES_EN = ("What is {a} plus {b}?", "How many {x} has {q}?")
_NOTES_ZH = ("{a} 加 {b} 是多少？", "{q}有多少{x}？")
_NOTED = (
    '{{"name": "calculator", "arguments": {{"expression": "{a} + {b}"}}}}',
    '{{"name": "lookup", "arguments": {{"name": "{q}", "what": "{x}"}}}}',
)
"""Tool calls that would answer the questions of _NOTES_EN and _NOTES_ZH, with words copied from the
question as arguments."""


def _notes(dice: Dice, in_english: bool) -> tuple[str, bool]:
    """Writes questions, each followed by the tool call that would answer it, without an answer:
    copying arguments takes more practice than the conversations give. Their sums lie outside
    SUMS."""
    lines = []
    for _ in range(2 + dice.below(3)):
        kind = dice.below(2)
        numbers = {key: 11 + dice.below(80) for key in "ab"}
        names = {"q": dice.pick(PEOPLE).name, "x": dice.pick(THINGS)}
        words = {key: name.en if in_english else name.zh for key, name in names.items()}
        ask = (_NOTES_EN if in_english else _NOTES_ZH)[kind]
        lines += [text.format(**numbers, **words) for text in (ask, _NOTED[kind])]
    return "\n".join(lines), False


_Kind = Callable[[Dice, bool], tuple[str, bool]]
_KINDS: tuple[_Kind, ...] = (
    *(_sums,) * 6,
    *(_counting,) * 2,
    *(_town_facts,) * 4,
    *(_person_facts,) * 4,
    *(_notes,) * 2,
    _story,
)
"""The functions that write documents, each repeated as often as its weight in a random pick."""


def town_words(town: Town, in_english: bool) -> dict[str, str]:
    names = {"t": town.name, "r": town.river, "c": town.colour, "a": town.animal, "f": town.food}
    return {key: name.en if in_english else name.zh for key, name in names.items()}


def person_words(person: Person, in_english: bool) -> dict[str, str]:
    words = town_words(person.town, in_english)
    if in_english:
        pronouns = {"S": "She", "o": "her"} if person.is_woman else {"S": "He", "o": "him"}
        return {**words, **pronouns, "p": person.name.en, "j": person.job.en}
    pronoun = "她" if person.is_woman else "他"
    return {**words, "S": pronoun, "s": pronoun, "p": person.name.zh, "j": person.job.zh}
