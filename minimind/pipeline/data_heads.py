"""Reads the beginning of data files: finds rows that cannot be used before hours of training would,
and estimates how much there is to train on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minimind.data.data_file import find_data
from minimind.data.formats import Format
from minimind.data.jsonl import BadRow, bad_rows_message
from minimind.data.mixture import parse_data_args
from minimind.data.rows import RowReader
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.run.resolve import ResolvedRun
from minimind.samples.files import Split
from minimind.samples.sources import find_data_file
from minimind.stages import STAGES
from minimind.types import Row

HEAD_BYTES = 1 << 20
"""The bytes of text that are read of each source."""
_HEAD_ROWS = 8192


class Amount(NamedTuple):
    """Counts what an epoch reads."""

    tokens: float
    units: float
    is_exact: bool
    """False where it was extrapolated from the beginning."""


def estimate_steps(run: ResolvedRun, tokenizer: Tokenizer) -> tuple[int | None, bool]:
    """Gives the number of optimizer steps of a run, and whether it is exact. It is None for
    compressed data, whose amount only reading tells. Raises DataError for a bad row at the
    beginning of the data, unless the run skips bad rows."""
    stage = STAGES[run.stage]
    data_format = stage.data_format.with_options(**run.recipe.format_options)
    names = run.arguments.get("data") or [f"sample:{stage.sample_data.name}"]
    amounts = _read_heads(run, tokenizer, data_format, names, "train")
    if val_data := run.arguments.get("val_data"):
        _read_heads(run, tokenizer, data_format, val_data, "val")
    if run.recipe.max_steps:
        return run.recipe.max_steps, True
    known = [amount for amount in amounts if amount is not None]
    if len(known) < len(amounts):
        return None, False
    weights = [weight for _, weight in parse_data_args(names)]
    times = _times(known, weights)
    tokens = sum(amount.tokens * n for amount, n in zip(known, times, strict=True))
    units = sum(amount.units * n for amount, n in zip(known, times, strict=True))
    rows = tokens / run.recipe.row_len if data_format.packed else units
    return max(1, math.ceil(run.recipe.epochs * rows / run.train_batch_size)), False


def _times(amounts: Sequence[Amount], weights: Sequence[float | None]) -> list[float]:
    """Gives how often an epoch reads each source, by the rule of minimind.data.mixture: once
    without weights; with weights so often that each source is read at least once and the shares of
    tokens equal the weights."""
    shares = [weight for weight in weights if weight]
    if not shares:
        return [1.0] * len(amounts)
    needed = [a.tokens * sum(shares) / share for a, share in zip(amounts, shares, strict=True)]
    total = max(needed)
    return [total / one for one in needed]


def _read_heads(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    data_format: Format,
    names: Sequence[str],
    split: Split,
) -> list[Amount | None]:
    return [
        read_head(
            find_data_file(path, split),
            tokenizer,
            data_format,
            format_name=run.arguments.get("format"),
            skips_bad_rows=run.arguments.get("on_bad_row") == "skip",
            row_len=run.recipe.row_len,
        )
        for path, _ in parse_data_args(names)
    ]


def read_head(
    path: str,
    tokenizer: Tokenizer,
    data_format: Format,
    *,
    format_name: str | None = None,
    skips_bad_rows: bool = False,
    row_len: int,
) -> Amount | None:
    """Tokenises the beginning of a source, and estimates what the whole holds; None for compressed
    data that goes on after it. Raises DataError for bad rows, unless they are skipped, and where no
    row can be used."""
    reader = RowReader(find_data(path), (data_format.name,), format_name)
    rows, offset, is_whole = _first_rows(reader)
    good = [row for row in rows if isinstance(row, Row)]
    read = [*data_format.read(good, tokenizer), *(row for row in rows if isinstance(row, BadRow))]
    bad = [sample for sample in read if isinstance(sample, BadRow)]
    samples = [sample for sample in read if not isinstance(sample, BadRow)]
    if bad and not (skips_bad_rows and samples):
        raise DataError(bad_rows_message(bad, len(bad)))
    lengths = [len(document.ids) for sample in samples for document in sample.documents]
    if not data_format.split_long:
        lengths = [min(length, row_len) for length in lengths]
    factor = 1.0
    if not is_whole:
        if reader.file.text_size is None:
            return None
        factor = reader.file.text_size / max(1, offset)
    return Amount(sum(lengths) * factor, len(samples) * factor, is_whole)


def _first_rows(reader: RowReader) -> tuple[list[Row | BadRow], int, bool]:
    """Gives the first rows, the bytes of text that they take, and whether these are all rows."""
    rows: list[Row | BadRow] = []
    offset = 0
    found: Iterator[tuple[Row | BadRow, int]] = iter(reader)
    for row, offset in itertools.islice(found, _HEAD_ROWS):
        rows.append(row)
        if offset >= HEAD_BYTES:
            break
    return rows, offset, next(found, None) is None
