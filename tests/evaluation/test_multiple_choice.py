"""Questions read from both layouts, and answered as the log-probabilities say."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_data import CEVAL, CMMLU
from small_models import random_model, reference_logits, small_config

from minimind.errors import ConfigError, DataError
from minimind.evaluation.multiple_choice import Question, measure_choices, read_questions
from minimind.samples.text import load_sample_tokenizer


def test_both_layouts(tmp_path: Path) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    (folder / "facts_val.csv").write_text(CEVAL, encoding="utf-8-sig")
    (folder / "words.csv").write_text(CMMLU, encoding="utf-8")
    questions = read_questions(folder)
    assert [q.subject for q in questions] == ["facts", "facts", "words"]
    assert questions[1] == Question(
        subject="facts", text="6 + 9 = ?", choices=("12", "15", "9", "3"), answer=1
    )
    assert questions[2].text == "What, then, is it?"
    assert questions[2].choices[3] == "d, e"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,A,B,C,answer\nx,1,2,3,A\n", r"q\.csv:1: no column 'd'"),
        ("question,A,B,C,D,answer\nx,1,2,3,4,E\n", r"q\.csv:2: the answer is 'E'"),
        ("question,A,B,C,D,answer\nx,1,,3,4,A\n", r"q\.csv:2: .*empty"),
        ("question,A,B,C,D,answer\nx,1,2\n", r"q\.csv:2: .*empty"),
        ("question,A,B,C,D,answer\n", r"q\.csv: holds no question"),
        ("", r"q\.csv:1: no column"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_questions(path)


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv: cannot be read"):
        read_questions(tmp_path / "no.csv")
    with pytest.raises(DataError, match=r"holds no \.csv file"):
        read_questions(tmp_path)


def test_the_likeliest_answer_counts() -> None:
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()
    words = ("red", "a very long blue one", "green", "x")

    def score(prompt: str, answer: str) -> float:
        before = tokenizer.encode_document(prompt)
        after = tokenizer.encode(f" {answer}")
        logits = reference_logits(model, before + after)[len(before) - 1 : -1]
        return logits.log_softmax(-1)[range(len(after)), after].sum().item()

    texts = ["Which one?", "哪一个？", "Colour of the sky?"]
    letter, text, normalised = [], [], []
    for question in texts:
        word = "Answer:" if question.isascii() else "答案："
        lines = [f"{x}. {w}" for x, w in zip("ABCD", words, strict=True)]
        posed = "\n".join([question, *lines, word])
        scores = [score(posed, x) for x in "ABCD"]
        letter.append(scores.index(max(scores)))
        scores = [score(f"{question}\n{word}", w) for w in words]
        text.append(scores.index(max(scores)))
        scores = [s / len(w.encode()) for s, w in zip(scores, words, strict=True)]
        normalised.append(scores.index(max(scores)))
    for answer in range(4):
        questions = [
            Question(subject=f"s{i}", text=t, choices=words, answer=answer)
            for i, t in enumerate(texts)
        ]
        found = measure_choices(model, tokenizer, questions)
        assert found["all"].num_questions == 3
        assert found["all"].letter == pytest.approx(letter.count(answer) / 3)
        assert found["all"].text == pytest.approx(text.count(answer) / 3)
        assert found["all"].text_normalised == pytest.approx(normalised.count(answer) / 3)
        assert found["s1"].letter == (letter[1] == answer)


def test_examples_stand_before_the_question() -> None:
    tokenizer = load_sample_tokenizer()
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()
    questions = read_example_questions()
    bare = measure_choices(model, tokenizer, questions[:1])
    shown = measure_choices(model, tokenizer, questions[:1], examples=questions[1:], num_examples=1)
    assert set(bare) == set(shown) == {"all", "s"}
    with pytest.raises(ConfigError, match=r"2 examples of s are asked for, there are 1"):
        measure_choices(model, tokenizer, questions[:1], examples=questions[1:], num_examples=2)


def read_example_questions() -> list[Question]:
    return [
        Question(subject="s", text=text, choices=("1", "2", "3", "4"), answer=2)
        for text in ("1 + 2 =", "0 + 3 =")
    ]
