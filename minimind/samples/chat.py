"""Generates the sample conversations: questions about the facts in the sample text, with right
answers, short or in whole sentences, and with wrong ones for preference data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minimind.samples.text import (
    SUMS,
    Dice,
    SamplePrompt,
    SampleRow,
    person_words,
    pick_count,
    spell_numbers,
    town_words,
)
from minimind.samples.tool_use import tool_conversation
from minimind.samples.world import HELD_OUT_COUNTS, HELD_OUT_SUMS, PEOPLE, TOWNS

TOOLS_ONE_IN = 8
"""One conversation in so many offers tools and asks something that only a tool can answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """Holds a question that has one right answer, and a wrong answer to it."""

    question: str
    answer: str
    wrong: str
    """A wrong answer of the same form as the right one."""
    sentence: str = ""
    """The answer as a whole sentence; "" where `answer` is one already."""
    reasoning: str = ""
    is_held_out: bool = False
    """True where the answer appears nowhere in the training data, so that the model has to work it
    out."""


SAMPLE_QUESTIONS = (
    SamplePrompt("What is the river of Lumor called?", "It is called the Sela.", False),
    SamplePrompt("塔恩的房子是什么颜色？", "是蓝色的。", False),
    SamplePrompt("Where does Anya live?", "Anya lives in Ovelia.", False),
    SamplePrompt("格蕾塔住在哪里？", "格蕾塔住在哈斯克。", False),
    SamplePrompt("What is 6 plus 9?", "It is 15.", True),
    SamplePrompt("7 加 5 是多少？", "是 12。", True),
    SamplePrompt("Count from 41 to 47.", "41, 42, 43, 44, 45, 46, 47.", True),
    SamplePrompt("从23数到28。", "23，24，25，26，27，28。", True),
)


def chat_rows(seed: int) -> Iterator[SampleRow]:
    """Yields endless rows of conversations, each of one to three questions in one language; one in
    TOOLS_ONE_IN uses tools."""
    plain, dice = _conversations(seed, in_sentences=False), Dice(seed + 1)
    while True:
        yield tool_conversation(dice) if dice.below(TOOLS_ONE_IN) == 0 else next(plain)


def sentence_rows(seed: int) -> Iterator[SampleRow]:
    """Yields endless conversations like those of `chat_rows` without tools, but with whole
    sentences as answers to facts about the world. An adapter can learn this style."""
    return _conversations(seed, in_sentences=True)


def _conversations(seed: int, *, in_sentences: bool) -> Iterator[SampleRow]:
    dice = Dice(seed)
    while True:
        in_english = dice.below(2) == 0
        asked = [dice.pick(_KINDS)(dice, in_english) for _ in range(dice.pick((1, 1, 1, 2, 2, 3)))]
        turns: list[dict[str, str]] = []
        for one in asked:
            turns.append({"role": "user", "content": one.question})
            answer = one.sentence if in_sentences and one.sentence else one.answer
            turns.append({"role": "assistant", "content": answer})
            if one.reasoning and dice.below(4) == 0:
                turns[-1]["reasoning_content"] = one.reasoning
        keys = [one.question for one in asked]
        yield {"conversations": turns}, keys, any(one.is_held_out for one in asked)


def preference_rows(seed: int) -> Iterator[SampleRow]:
    """Yields endless preference pairs: the right answer, and as the rejected one a wrong or an
    evasive answer."""
    dice = Dice(seed)
    while True:
        in_english = dice.below(2) == 0
        one = dice.pick(_KINDS)(dice, in_english)
        evasive = dice.pick(_EVASIVE_EN if in_english else _EVASIVE_ZH)
        worse = evasive if dice.below(3) == 0 else one.wrong
        question = {"role": "user", "content": one.question}
        sides = [[question, {"role": "assistant", "content": a}] for a in (one.answer, worse)]
        yield {"chosen": sides[0], "rejected": sides[1]}, [one.question], one.is_held_out


def unpaired_rows(seed: int) -> Iterator[SampleRow]:
    """Yields each answer of `preference_rows` as a row of its own, with a label that says whether
    it is the chosen one."""
    for row, keys, is_held_out in preference_rows(seed):
        yield {"conversations": row["chosen"], "label": True}, keys, is_held_out
        yield {"conversations": row["rejected"], "label": False}, keys, is_held_out


_EVASIVE_EN = ("I do not know.", "Why do you ask?", "Now we can wait together.")
_EVASIVE_ZH = ("我不知道。", "你问什么？", "现在我们可以一起等。")


def _sum(dice: Dice, in_english: bool) -> Question:
    first, second = dice.pick(SUMS)
    total = first + second
    wrong = total + dice.pick([-2, -1, 1, 2]) if total > 2 else total + 1
    ask, say = dice.pick(
        (("What is {a} plus {b}?", "It is {c}."), ("{a} + {b} =", "{c}"))
        if in_english
        else (("{a} 加 {b} 是多少？", "是 {c}。"), ("{a} + {b} =", "{c}"))
    )
    return Question(
        ask.format(a=first, b=second),
        say.format(c=total),
        say.format(c=wrong),
        reasoning=f"{first} + {second} = {total}",
        is_held_out=(first, second) in HELD_OUT_SUMS,
    )


def _count(dice: Dice, in_english: bool) -> Question:
    first, last = pick_count(dice)
    numbers = range(first, last + 1)
    left_out = first + 1 + dice.below(len(numbers) - 2)
    wrong = [number for number in numbers if number != left_out]
    if dice.below(2) == 0:  # goes on past the end
        wrong = range(first, last + 2 + dice.below(4))
    return Question(
        f"Count from {first} to {last}." if in_english else f"从{first}数到{last}。",
        spell_numbers(numbers, in_english),
        spell_numbers(wrong, in_english),
        is_held_out=(first, last) in HELD_OUT_COUNTS,
    )


# (question, answer), and a third entry, the answer as a sentence, where the answer is not one.
_TOWN_EN = (
    (
        "What is the river of {t} called?",
        "It is called the {r}.",
        "The river of {t} is called the {r}.",
    ),
    ("What colour are the houses of {t}?", "They are {c}.", "The houses of {t} are {c}."),
    ("What do the people of {t} keep?", "They keep {a}.", "The people of {t} keep {a}."),
    ("What is {t} known for?", "{t} is known for its {f}."),
)
_TOWN_ZH = (
    ("{t}的河叫什么？", "叫{r}。", "{t}的河叫{r}。"),
    ("{t}的房子是什么颜色？", "是{c}的。", "{t}的房子是{c}的。"),
    ("{t}的人养什么？", "他们养{a}。", "{t}的人养{a}。"),
    ("{t}的什么很有名？", "{t}的{f}很有名。"),
)
_PERSON_EN = (
    ("Where does {p} live?", "{p} lives in {t}."),
    ("What does {p} work as?", "{p} works as a {j}."),
    ("What does {p} like?", "{S} likes {f}.", "{p} likes {f}."),
)
_PERSON_ZH = (
    ("{p}住在哪里？", "{p}住在{t}。"),
    ("{p}的工作是什么？", "{p}的工作是{j}。"),
    ("{p}喜欢什么？", "{S}喜欢{f}。", "{p}喜欢{f}。"),
)


def _town_fact(dice: Dice, in_english: bool) -> Question:
    ask, say, *sentence = dice.pick(_TOWN_EN if in_english else _TOWN_ZH)
    town, other = (town_words(town, in_english) for town in dice.some(TOWNS, 2, 2))
    return Question(
        ask.format(**town),
        say.format(**town),
        say.format(**{**other, "t": town["t"]}),
        "".join(sentence).format(**town),
    )


def _person_fact(dice: Dice, in_english: bool) -> Question:
    ask, say, *sentence = dice.pick(_PERSON_EN if in_english else _PERSON_ZH)
    person, other = dice.some(PEOPLE, 2, 2)
    while other.town == person.town:
        other = dice.pick(PEOPLE)
    words, wrong = (person_words(one, in_english) for one in (person, other))
    same = {key: words[key] for key in ("p", "S")}
    return Question(
        ask.format(**words),
        say.format(**words),
        say.format(**{**wrong, **same}),
        "".join(sentence).format(**words),
    )


_KINDS: tuple[Callable[[Dice, bool], Question], ...] = (
    *(_sum,) * 5,
    *(_count,) * 2,
    *(_town_fact,) * 4,
    *(_person_fact,) * 3,
)
"""The functions that make questions, each repeated as often as its weight in a random pick."""
