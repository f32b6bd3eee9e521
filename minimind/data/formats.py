"""Data formats: what a row of each kind must hold, and which of its tokens are targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minimind.data.jsonl import BadRow, json_type
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.types import Row, Sample


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of row. `read` takes rows by the batch, so that all cores tokenise, and gives for each
    its sample or what is wrong with it."""

    name: str
    version: str
    """Part of the cache key: raise it with every change of what `read` gives."""
    all_targets: bool
    """Every token is a target, so the cache stores no mask."""
    split_long: bool
    """A document longer than a row is split, else truncated."""
    read: Callable[[Sequence[Row], Tokenizer], list[Sample | BadRow]]


def text_samples(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample | BadRow]:
    """`{"text": …}` as bos, text, eos, each of them a target; other keys are ignored."""
    problems = [text_problem(row) for row in rows]
    good = [row.data["text"] for row, problem in zip(rows, problems, strict=True) if not problem]
    encoded = iter(tokenizer.encode_batch(good))
    samples: list[Sample | BadRow] = []
    for row, problem in zip(rows, problems, strict=True):
        if problem:
            samples.append(BadRow(row.path, row.line, problem))
            continue
        ids = np.array([tokenizer.bos_id, *next(encoded), tokenizer.eos_id], dtype=np.int32)
        samples.append(Sample(ids=ids, is_target=np.ones(len(ids), dtype=bool)))
    return samples


def text_problem(row: Row) -> str | None:
    """What is wrong with a text row, or None."""
    if "text" not in row.data:
        found = ", ".join(repr(key) for key in list(row.data)[:5]) or "none"
        return f'no key "text" (keys found: {found}); a row looks like {{"text": "…"}}'
    return string_problem(row.data["text"], '"text"')


def string_problem(value: object, what: str) -> str | None:
    """Why `value` is no text to train on, or None."""
    if not isinstance(value, str):
        return f"{what} is {json_type(value)} where a string is expected"
    if not value.strip():
        return f"{what} is {'blank' if value else 'empty'}; leave the row out or give it text"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return (
                f"{what} holds half a character (\\u{code:04x}, a lone surrogate) at character "
                f"{error.start + 1}; it has no UTF-8 form"
            )
    return None


FORMATS = {
    "text": Format("text", "1", all_targets=True, split_long=True, read=text_samples),
}


def get_format(name: str) -> Format:
    """Raises ConfigError where there is no such format."""
    if name not in FORMATS:
        raise ConfigError(f"there is no data format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
