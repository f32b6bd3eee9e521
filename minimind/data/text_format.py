"""Defines the text format: documents of which every token is a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimind.data.collate import collate
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, RowProblem, json_type, require_key
from minimind.data.tokenizer import Tokenizer
from minimind.types import Row, Sample


def text_samples(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample | BadRow]:
    """Tokenises `{"text": …}` rows as bos, text, eos, all of them targets. Other keys are
    ignored."""
    read: list[str | BadRow] = []
    for row in rows:
        try:
            read.append(read_text(row))
        except RowProblem as problem:
            read.append(BadRow.of(row, str(problem)))
    encoded = iter(tokenizer.encode_batch([text for text in read if isinstance(text, str)]))
    samples: list[Sample | BadRow] = []
    for text in read:
        if isinstance(text, BadRow):
            samples.append(text)
            continue
        ids = np.array(
            [*tokenizer.document_start, *next(encoded), tokenizer.eos_id], dtype=np.int32
        )
        samples.append(Sample(ids=ids, is_target=np.ones(len(ids), dtype=bool)))
    return samples


def read_text(row: Row) -> str:
    """Gives a row's text. Raises RowProblem where it has none to train on."""
    require_key(row, "text", '{"text": "…"}')
    check_string(row.data["text"], '"text"')
    return row.data["text"]


def check_string(value: object, what: str) -> None:
    """Raises RowProblem where `value`, called `what`, is not a text to train on."""
    if not isinstance(value, str):
        raise RowProblem(f"{what} is {json_type(value)} where a string is expected")
    if not value.strip():
        state = "blank" if value else "empty"
        raise RowProblem(f"{what} is {state}; leave the row out or give it text")
    check_characters(value, what)


def check_characters(text: str, what: str) -> None:
    """Raises RowProblem, which gives the place, where a text called `what` has a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{what} holds half a character (\\u{ord(text[error.start]):04x}, a lone surrogate) at "
            f"character {error.start + 1}; it has no UTF-8 form"
        ) from None


TEXT = Format(
    name="text", version="1", all_targets=True, split_long=True, read=text_samples, collate=collate
)
