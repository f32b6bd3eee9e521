"""Reads JSON-lines files as a stream, without holding the file or an index of it in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from minimind.config.json_file import check_depth, no_duplicates
from minimind.errors import DataError
from minimind.types import Row

OnBadRow = Literal["stop", "skip"]
"""Says what becomes of rows that cannot be used: an error lists them, or they are left out."""
MAX_LINE_BYTES = 256 << 20
"""The longest allowed line. A row is parsed in memory, and a file without line ends is not JSON
lines."""
MAX_LISTED = 20
"""The most bad rows that a message lists; the others are counted."""
_MAX_ALIKE = 3
"""The most rows with the same reason that are listed."""
_CHUNK_BYTES = 4 << 20
BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class BadRow:
    """Holds the place of a row that cannot be used, and the reason. `str` gives both, as in
    `a.jsonl:3: reason`."""

    path: str
    line: int
    reason: str
    unit: str = "line"
    """The same as Row.unit."""

    @classmethod
    def of(cls, row: Row, reason: str) -> BadRow:
        return cls(row.path, row.line, reason, row.unit)

    def __str__(self) -> str:
        text = f"{spell_place(self.path, self.line, self.unit)}: {self.reason}"
        # A reason may quote half a character of the row, which cannot be written as UTF-8.
        return text.encode(errors="backslashreplace").decode()


class RowProblem(ValueError):
    """Says why a row, or a part of it, cannot be used."""


def spell_place(path: str, line: int, unit: str) -> str:
    """Gives a row's place as a text: `a.jsonl:3`, or `a.json row 3`."""
    return f"{path}:{line}" if unit == "line" else f"{path} {unit} {line}"


def bad_rows_message(bad: Sequence[BadRow], total: int) -> str:
    """Lists bad rows, one per line, up to a limit and with few of the same reason, and says how
    many there are in `total`."""
    alike: Counter[str] = Counter()
    lines = []
    for row in bad:
        alike[row.reason] += 1
        if alike[row.reason] <= _MAX_ALIKE and len(lines) < MAX_LISTED:
            lines.append(str(row))
    if total > len(lines):
        lines.append(f"… and {total - len(lines):,} more")
    lines.append(f"{total} bad row{'s' if total > 1 else ''}")
    return "\n".join(lines)


def bad_rows_error(bad: Sequence[BadRow], total: int) -> DataError:
    """Makes the error that lists bad rows and says what to do."""
    message = bad_rows_message(bad, total)
    return DataError(f"{message}; mend them, or leave them out with --on_bad_row skip")


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each line that is not blank as a row, with the byte offset of the next line (for
    progress). A line that is not a JSON object becomes a BadRow.

    A byte-order mark at the start, CRLF and a missing last line end are accepted.
    """
    offset = number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        offset += len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            offset += _skip_line(file)
            reason = f"line is longer than {MAX_LINE_BYTES >> 20} MiB; split it into rows"
            yield BadRow(name, number, reason), offset
            continue
        if number == 1:
            raw = raw.removeprefix(BOM)
        if not raw.strip(_BLANK):
            continue
        parsed = _parse(raw.rstrip(b"\r\n"))
        if isinstance(parsed, str):
            yield BadRow(name, number, parsed), offset
        else:
            yield Row(data=parsed, path=name, line=number), offset


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while raw := file.readline(_CHUNK_BYTES):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped


_DECODER = json.JSONDecoder(object_pairs_hook=no_duplicates)


def _parse(raw: bytes) -> dict | str:
    """Parses a line; gives the object, or the reason why the row is bad."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        return f"not UTF-8: byte 0x{byte:02x} at byte {error.start + 1} of the line"
    try:
        data = _DECODER.decode(text)
        check_depth(text, data)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno}); each line must be one JSON object"
    except (RecursionError, ValueError) as error:
        return f"not usable JSON: {error}"
    if not isinstance(data, dict):
        return f"{json_type(data)} where a JSON object is expected"
    return data


def require_key(row: Row, key: str, example: str) -> None:
    """Raises RowProblem, which names the keys found, where a row has no `key`."""
    if key not in row.data:
        found = ", ".join(repr(key) for key in list(row.data)[:5]) or "none"
        raise RowProblem(f'no key "{key}" (keys found: {found}); a row looks like {example}')


def json_type(value: object) -> str:
    """Gives JSON's name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of the type {type(value).__name__}")
