"""Defines the text format: documents of which every token is a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimind.data.collate import collate
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, json_type, missing_key
from minimind.data.tokenizer import Tokenizer
from minimind.types import Row, Sample


def text_samples(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample | BadRow]:
    """Tokenises `{"text": …}` rows as bos, text, eos, all of them targets. Other keys are
    ignored."""
    problems = [text_problem(row) for row in rows]
    good = [row.data["text"] for row, problem in zip(rows, problems, strict=True) if not problem]
    encoded = iter(tokenizer.encode_batch(good))
    samples: list[Sample | BadRow] = []
    for row, problem in zip(rows, problems, strict=True):
        if problem:
            samples.append(BadRow.of(row, problem))
            continue
        ids = np.array(
            [*tokenizer.document_start, *next(encoded), tokenizer.eos_id], dtype=np.int32
        )
        samples.append(Sample(ids=ids, is_target=np.ones(len(ids), dtype=bool)))
    return samples


def text_problem(row: Row) -> str | None:
    """Gives the reason why a row cannot be used as text, or None."""
    if "text" not in row.data:
        return missing_key(row, "text", '{"text": "…"}')
    return string_problem(row.data["text"], '"text"')


def string_problem(value: object, what: str) -> str | None:
    """Gives the reason why `value`, called `what`, is not a text to train on, or None."""
    if not isinstance(value, str):
        return f"{what} is {json_type(value)} where a string is expected"
    if not value.strip():
        return f"{what} is {'blank' if value else 'empty'}; leave the row out or give it text"
    return surrogate_problem(value, what)


def surrogate_problem(text: str, what: str) -> str | None:
    """Gives the place of a lone surrogate in `text`, as a message, or None."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            return (
                f"{what} holds half a character (\\u{code:04x}, a lone surrogate) at character "
                f"{error.start + 1}; it has no UTF-8 form"
            )
    return None


TEXT = Format(
    name="text", version="1", all_targets=True, split_long=True, read=text_samples, collate=collate
)
