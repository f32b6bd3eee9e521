"""Reads Parquet files in batches of rows. Only this file imports pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from minimind.config.json_file import no_duplicates
from minimind.data.jsonl import BadRow
from minimind.errors import DataError
from minimind.types import Row

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1024
Clean = Callable[[Any], Any]


def read_parquet(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each row, with the approximate number of bytes read so far. A field without a value is
    removed from its object, at any depth: Arrow gives each object of a column the keys of all of
    them, so a null in the data cannot be told from one that Arrow filled in. Raises DataError where
    the file is damaged."""
    import pyarrow
    import pyarrow.parquet

    number = size = 0
    try:
        source = pyarrow.parquet.ParquetFile(file)
        cleaners = {field.name: clean for field in source.schema_arrow
                    if (clean := _cleaner(field.type))}  # fmt: skip
        for batch in source.iter_batches(batch_size=_ROWS):
            step = batch.nbytes // max(1, batch.num_rows)
            for data in batch.to_pylist():
                number += 1
                size += step
                try:
                    given = _given(data, cleaners)
                except ValueError as problem:
                    yield BadRow(name, number, str(problem), "row"), size
                else:
                    yield Row(data=given, path=name, line=number, unit="row"), size
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: is a Parquet file that cannot be read: {error}") from None


def _given(data: Mapping[str, Any], cleaners: Mapping[str, Clean]) -> dict[str, Any]:
    return {
        key: cleaners[key](value) if key in cleaners else value
        for key, value in data.items()
        if value is not None
    }


def _cleaner(kind: pyarrow.DataType) -> Clean | None:
    """Gives a function that removes empty fields from a value of this type; None where the type
    contains no objects."""
    import pyarrow.types as types

    if types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        inner = {field.name: clean for field in fields if (clean := _cleaner(field.type))}
        return lambda value: _given(value, inner)
    if types.is_map(kind):
        clean_item = _cleaner(kind.item_type) or (lambda item: item)
        return lambda pairs: {
            key: None if item is None else clean_item(item)
            for key, item in no_duplicates(pairs).items()
        }
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if is_list and (clean_one := _cleaner(kind.value_type)):
        return lambda items: [None if item is None else clean_one(item) for item in items]
    return None
