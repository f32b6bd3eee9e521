"""Reads the texts that a tokenizer is trained on, from rows of any format."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from minimind.data.jsonl import (
    BadRow,
    OnBadRow,
    RowProblem,
    bad_rows_error,
    bad_rows_message,
)
from minimind.data.rows import open_rows, unread_message
from minimind.data.text_format import check_characters, read_text
from minimind.errors import DataError
from minimind.types import Row

logger = logging.getLogger(__name__)

_ROW_KEYS = ("system", "tools")
_TURN_KEYS = ("content", "reasoning_content", "tools", "tool_calls")
_LISTS = ("conversations", "chosen", "rejected")


def read_training_texts(
    paths: Sequence[str],
    on_bad_row: OnBadRow = "stop",
    progress: bool = False,
    format_name: str | None = None,
    max_bytes: int = 0,
) -> Iterator[str]:
    """Yields the texts in rows of any format; `format_name` names the form of the rows
    (data/rows.py). With `max_bytes` above 0 it reads so many bytes of each source at most, to the
    end of the row.

    At the end, bad rows of all files are listed in a DataError ("stop") or logged ("skip").
    DataError is also raised if there was no text at all.
    """
    # All files are opened before the first text, so that a mistyped path does not cost a pass over
    # the others.
    readers = [open_rows(path, format_name=format_name) for path in paths]
    bad: list[BadRow] = []
    num_texts = 0
    for reader in readers:
        if described := reader.describe():
            logger.info("%s: %s", reader.file.path, described)
        for row, offset in reader.read("reading" if progress else ""):
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            try:
                texts = row_texts(row)
            except RowProblem as problem:
                bad.append(BadRow.of(row, str(problem)))
                continue
            num_texts += len(texts)
            yield from texts
            if 0 < max_bytes <= offset:
                break
        if reader.unread:
            path = reader.file.path
            logger.warning("%s", unread_message(path, reader.unread, reader.num_rows))
    if bad and (on_bad_row == "stop" or not num_texts):
        raise bad_rows_error(bad, len(bad))
    if bad:
        logger.warning("%s skipped", bad_rows_message(bad, len(bad)))
    if not num_texts:
        names = ", ".join(os.path.basename(path) for path in paths)
        raise DataError(f"{names}: no text to train on")


def row_texts(row: Row) -> list[str]:
    """Gives the texts of one row. Raises RowProblem."""
    lists = [row.data[key] for key in _LISTS if key in row.data]
    if not lists:
        return [read_text(row)]
    for key in _LISTS:
        turns = row.data.get(key, [])
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise RowProblem(f'"{key}" is not a list of objects')
    values = [(key, row.data.get(key)) for key in _ROW_KEYS]
    # The two sides of a pair begin with the same turns.
    first, *others = lists
    values += [(key, turn.get(key)) for turn in first for key in _TURN_KEYS]
    for turns in others:
        fresh = [turn for turn, other in zip_longest(turns, first) if turn and turn != other]
        values += [(key, turn.get(key)) for turn in fresh for key in _TURN_KEYS]
    texts = []
    for key, value in values:
        if value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            check_characters(text, f'"{key}"')
            texts.append(text)
    return texts
