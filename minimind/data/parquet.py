"""Parquet files, read by row groups; the only file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from minimind.data.jsonl import BadRow
from minimind.errors import DataError
from minimind.types import Row

_ROWS = 1024


def read_parquet(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each row, with about the bytes that the rows so far take. A column without a value is
    no key of the row. Raises DataError where the file is damaged."""
    import pyarrow
    import pyarrow.parquet

    number = size = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_ROWS):
            step = batch.nbytes // max(1, batch.num_rows)
            for data in batch.to_pylist():
                number += 1
                size += step
                given = {key: value for key, value in data.items() if value is not None}
                yield Row(data=given, path=name, line=number, unit="row"), size
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: is a Parquet file that cannot be read: {error}") from None
