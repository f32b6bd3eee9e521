"""The texts a tokenizer is trained on, out of rows of any format."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from tqdm import tqdm

from minimind.data.jsonl import BadRow, bad_rows_message, read_rows, scan_jsonl
from minimind.data.text_format import string_problem, text_problem
from minimind.errors import DataError
from minimind.types import Row

logger = logging.getLogger(__name__)

_TURN_KEYS = ("content", "reasoning_content", "tools", "tool_calls")


def read_training_texts(
    paths: Sequence[str], on_bad_row: Literal["stop", "skip"] = "stop", progress: bool = False
) -> Iterator[str]:
    """Streams the texts of `{"text": …}` and `{"conversations": […]}` rows.

    With "stop" the stream ends in a DataError that lists the bad rows of all files, with "skip"
    they are logged. A stream without any text ends in a DataError too.
    """
    # Named before the first text, so that a mistyped path does not cost a pass over the others.
    files = [scan_jsonl(path) for path in paths]
    bad: list[BadRow] = []
    num_texts = 0
    with tqdm(
        total=sum(file.size for file in files),
        unit="B",
        unit_scale=True,
        desc="reading",
        file=sys.stderr,
        disable=None if progress else True,
    ) as bar:
        for file in files:
            done = 0
            for row, offset in read_rows(file.path):
                texts = row_texts(row) if isinstance(row, Row) else row
                bar.update(offset - done)
                done = offset
                if isinstance(texts, BadRow):
                    bad.append(texts)
                    continue
                num_texts += len(texts)
                yield from texts
    if bad and (on_bad_row == "stop" or not num_texts):
        raise DataError(
            f"{bad_rows_message(bad, len(bad))}; mend them, or leave them out with "
            "--on_bad_row skip"
        )
    if bad:
        logger.warning("%s skipped", bad_rows_message(bad, len(bad)))
    if not num_texts:
        names = ", ".join(os.path.basename(path) for path in paths)
        raise DataError(f"{names}: no text to train on")


def row_texts(row: Row) -> list[str] | BadRow:
    """The texts of one row, or what is wrong with it."""
    if "conversations" not in row.data:
        problem = text_problem(row)
        return BadRow(row.path, row.line, problem) if problem else [row.data["text"]]
    turns = row.data["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return BadRow(row.path, row.line, '"conversations" is not a list of objects')
    texts = []
    for turn in turns:
        for key in _TURN_KEYS:
            value = turn.get(key)
            if not value:
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if problem := text.strip() and string_problem(text, f'"{key}"'):
                return BadRow(row.path, row.line, problem)
            texts.append(text)
    return texts
