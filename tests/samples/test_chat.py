"""The project's own conversations and pairs: right, apart by split, in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minimind.data.chat_format import CHAT
from minimind.data.preference_format import PREFERENCE
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.samples.chat import SAMPLE_QUESTIONS
from minimind.samples.files import (
    CHAT_DATA,
    PREFERENCE_DATA,
    SENTENCES_DATA,
    sample_data_path,
    write_sample,
)
from minimind.samples.world import HELD_OUT_COUNTS, HELD_OUT_SUMS

DATA = {"chat": CHAT_DATA, "preference": PREFERENCE_DATA}
FORMATS = {"chat": CHAT, "preference": PREFERENCE}
Rows = dict[tuple[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("sample")
    found = {}
    for name, data in DATA.items():
        for split in ("train", "val"):
            path = folder / f"{name}_{split}.jsonl"
            write_sample(path, split, data)
            wanted = data.train_bytes if split == "train" else data.val_bytes
            assert 0 <= path.stat().st_size - wanted < 1000
            lines = path.read_text(encoding="utf-8").splitlines()
            read = [json.loads(line) for line in lines]
            # Those with tools: test_sample_tasks.py.
            found[name, split] = [row for row in read if '"tools"' not in json.dumps(row)]
    return found


def asked(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(question, answer) of each exchange; of a pair, the chosen one's."""
    turns = [turn["content"] for turn in row.get("conversations") or row["chosen"]]
    return list(zip(turns[::2], turns[1::2], strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_validation_asks_what_training_never_does(rows: Rows, name: str) -> None:
    known = {question for row in rows[name, "train"] for question, _ in asked(row)}
    for row in rows[name, "val"]:
        assert any(question not in known for question, _ in asked(row))


@pytest.mark.parametrize("name", FORMATS)
def test_sums_and_counts_are_right_and_held_out_ones_absent(rows: Rows, name: str) -> None:
    ask_sum = re.compile(r"(\d+)(?: \+ | plus | 加 )(\d+)")
    ask_count = re.compile(r"(?:from |从)(\d+)(?: to |数到)(\d+)")
    for split in ("train", "val"):
        sums, counts = set(), set()
        for question, answer in (pair for row in rows[name, split] for pair in asked(row)):
            numbers = [int(number) for number in re.findall(r"\d+", answer)]
            if found := ask_sum.search(question):
                first, second = map(int, found.groups())
                assert numbers == [first + second]
                sums.add((first, second))
            elif found := ask_count.search(question):
                first, last = map(int, found.groups())
                assert numbers == list(range(first, last + 1))
                counts.add((first, last))
        assert len(sums) > 20
        assert len(counts) > 10
        assert bool(sums & HELD_OUT_SUMS) == (split == "val")
        assert split == "val" or not counts & HELD_OUT_COUNTS


def test_a_question_has_one_right_answer_and_pairs_prefer_it(rows: Rows) -> None:
    answers: dict[str, str] = {}
    for row in (row for key in rows for row in rows[key]):
        for question, answer in asked(row):
            assert answers.setdefault(question, answer) == answer
    for split in ("train", "val"):
        for row in rows["preference", split]:
            (question, chosen), rejected = asked(row)[0], row["rejected"][1]["content"]
            assert row["rejected"][0]["content"] == question
            assert rejected != chosen


@pytest.mark.parametrize("name", FORMATS)
def test_both_languages_have_about_half_of_the_rows(rows: Rows, name: str) -> None:
    texts = [json.dumps(row, ensure_ascii=False) for row in rows[name, "train"]]
    english = sum(bool(re.search(r'"content": "(What|Where|Count)', text)) for text in texts)
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in texts)
    assert 0.35 < chinese / len(texts) < 0.6
    assert 0.35 < english / len(texts) < 0.6


def test_some_answers_are_thought_about(rows: Rows) -> None:
    turns = [turn for row in rows["chat", "train"] for turn in row["conversations"]]
    thoughts = [turn for turn in turns if "reasoning_content" in turn]
    assert 100 < len(thoughts) < len(turns) / 8
    for turn in thoughts:
        a, b, c = map(int, re.findall(r"\d+", turn["reasoning_content"]))
        assert a + b == c
        assert str(c) in turn["content"]


@pytest.mark.parametrize("sample", SAMPLE_QUESTIONS, ids=lambda sample: sample.prompt)
def test_questions_are_answered_in_training_unless_held_out(rows: Rows, sample) -> None:
    known = [pair for row in rows["chat", "train"] for pair in asked(row)]
    assert ((sample.prompt, sample.expected) in known) != sample.is_held_out


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_can_be_read_and_fits_a_row_of_tiny(tokenizer: Tokenizer, name: str) -> None:
    for split in ("train", "val"):
        cache = build_token_cache(sample_data_path(split, DATA[name]), tokenizer, FORMATS[name])
        assert cache.num_skipped == 0
        assert cache.lengths.max() <= 170


def test_adapters_learn_to_answer_in_whole_sentences(tmp_path: Path) -> None:
    write_sample(tmp_path / "train", "train", SENTENCES_DATA)
    lines = (tmp_path / "train").read_text(encoding="utf-8").splitlines()
    answers = dict(pair for line in lines for pair in asked(json.loads(line)))
    river = "What is the river of Lumor called?"
    assert answers[river] == "The river of Lumor is called the Sela."
    assert answers["塔恩的房子是什么颜色？"] == "塔恩的房子是蓝色的。"
    assert answers["What is 4 plus 13?"] == "It is 17."
    assert not {"What is 13 plus 4?", "Count from 41 to 47."} & answers.keys()
