"""Measures the accuracy on multiple-choice questions by log-probability, in the CSV layout of
C-Eval and CMMLU.

C-Eval (Huang et al. 2023): `id,question,A,B,C,D,answer`; CMMLU (Li et al. 2023):
`,Question,A,B,C,D,Answer`. A folder holds one file for each subject, `<subject>_val.csv` or
`<subject>.csv`; examples to show before a question come from a folder `dev` beside it or in it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, DataError
from minimind.evaluation.scoring import continuation, score_documents
from minimind.model.transformer import Transformer

LETTERS = "ABCD"
_SPLITS = ("_val", "_dev", "_test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Holds the accuracy on a set of questions, 0 to 1, for three ways to read an answer off the
    model."""

    num_questions: int
    letter: float
    """Share of questions where the right letter is likeliest, after the question and all its
    choices."""
    text: float
    """Share of questions where the right choice's text is likeliest, after the question alone."""
    text_normalised: float
    """The same as `text`, with each choice's log-probability divided by its length in bytes."""


def read_questions(path: str | Path) -> list[Question]:
    """Reads a CSV file, or every CSV file of a folder. Raises DataError naming file and line."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.csv"))
        if not files:
            raise DataError(f"{path}: holds no .csv file; give a folder of one split, as val/")
    else:
        files = [path]
    return [question for file in files for question in _read_file(file)]


def _read_file(path: Path) -> list[Question]:
    subject = path.stem
    for split in _SPLITS:
        subject = subject.removesuffix(split)
    questions = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = {name.strip().lower(): name for name in reader.fieldnames or () if name}
            if missing := {"question", "answer", *LETTERS.lower()} - set(names):
                raise DataError(
                    f"{path}:1: no column {sorted(missing)[0]!r}; the columns are question, A, B, "
                    "C, D, answer"
                )
            for row in reader:
                values = {key: (row[name] or "").strip() for key, name in names.items()}
                where = f"{path}:{reader.line_num}"
                choices = tuple(values[letter.lower()] for letter in LETTERS)
                if not values["question"] or not all(choices):
                    raise DataError(f"{where}: the question or one of its choices is empty")
                letter = values["answer"].upper()
                if letter not in LETTERS or len(letter) != 1:
                    raise DataError(f"{where}: the answer is {letter!r}; it must be A, B, C or D")
                questions.append(
                    Question(
                        subject=subject,
                        text=values["question"],
                        choices=choices,
                        answer=LETTERS.index(letter),
                    )
                )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not questions:
        raise DataError(f"{path}: holds no question")
    return questions


def measure_choices(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    examples: Sequence[Question] = (),
    num_examples: int = 0,
    progress: bool = False,
) -> dict[str, Accuracy]:
    """Gives the accuracy by subject, and over all questions under "all". Each question is preceded
    by the first `num_examples` of `examples` of its subject, with their answers."""
    known: dict[str, list[Question]] = {}
    for example in examples:
        known.setdefault(example.subject, []).append(example)
    samples, lengths = [], []
    for question in questions:
        shown = known.get(question.subject, [])[:num_examples]
        if len(shown) < num_examples:
            raise ConfigError(
                f"{num_examples} examples of {question.subject} are asked for, there are "
                f"{len(shown)}"
            )
        with_letters = "".join(_posed(q) + f" {LETTERS[q.answer]}\n\n" for q in shown)
        without = "".join(f"{_asked(q)} {q.choices[q.answer]}\n\n" for q in shown)
        for prompt, answers in (
            (with_letters + _posed(question), LETTERS),
            (without + _asked(question), question.choices),
        ):
            prompt_ids = tokenizer.encode_document(prompt)
            encoded = tokenizer.encode_batch([f" {answer}" for answer in answers])
            samples += [continuation(prompt_ids, ids) for ids in encoded]
        lengths += [[len(choice.encode()) for choice in question.choices]]
    bar = "multiple choice" if progress else ""
    scores = score_documents(model, samples, pad_id=tokenizer.pad_id, progress=bar)
    by_letter_QA, by_text_QA = np.moveaxis(scores.log_probs.reshape(-1, 2, len(LETTERS)), 1, 0)
    right_Q = np.array([question.answer for question in questions])
    hits = {
        "letter": by_letter_QA.argmax(1) == right_Q,
        "text": by_text_QA.argmax(1) == right_Q,
        "text_normalised": (by_text_QA / np.array(lengths)).argmax(1) == right_Q,
    }
    subjects = np.array([question.subject for question in questions])
    groups = {"all": np.ones(len(questions), dtype=bool)}
    groups |= {name: subjects == name for name in sorted(set(subjects.tolist()))}
    return {
        name: Accuracy(
            num_questions=int(chosen.sum()),
            **{kind: float(hit[chosen].mean()) for kind, hit in hits.items()},
        )
        for name, chosen in groups.items()
    }


def _posed(question: Question) -> str:
    """Writes the question and its choices, ending where the letter of the answer follows."""
    lines = [f"{letter}. {c}" for letter, c in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.text, *lines, _answer_word(question)])


def _asked(question: Question) -> str:
    return f"{question.text}\n{_answer_word(question)}"


def _answer_word(question: Question) -> str:
    return "Answer:" if question.text.isascii() else "答案："
