"""Reads plain text as documents: each file is one, or each part between blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from minimind.data.jsonl import BOM, MAX_LINE_BYTES, BadRow
from minimind.types import Row

_TOO_LONG = "is longer than {} MiB, which are encoded at once; "


def read_documents(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields the whole file as one row, with its size in bytes."""
    raw = file.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        todo = "--format paragraphs reads a document between each two blank lines"
        reason = f"the text {_TOO_LONG.format(MAX_LINE_BYTES >> 20)}{todo}"
        yield BadRow(name, 1, reason), len(raw)
        return
    yield _row(raw.removeprefix(BOM), name, 1), len(raw)


def read_paragraphs(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each part between blank lines as a row, with the number of bytes read so far."""
    lines: list[bytes] = []
    first = number = size = length = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        size += len(raw)
        if number == 1:
            raw = raw.removeprefix(BOM)
        is_blank = not raw.strip()
        if not is_blank:
            first = first or number
            lines.append(raw)
            length += len(raw)
        if length > MAX_LINE_BYTES:
            reason = f"a part without a blank line {_TOO_LONG.format(MAX_LINE_BYTES >> 20)}"
            yield BadRow(name, first, f"{reason}part it"), size
            lines, first, length = [], 0, 0
        elif is_blank and lines:
            yield _row(b"".join(lines), name, first), size
            lines, first, length = [], 0, 0
    if lines:
        yield _row(b"".join(lines), name, first), size


def _row(raw: bytes, name: str, line: int) -> Row | BadRow:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        return BadRow(name, line, f"not UTF-8: byte 0x{raw[error.start]:02x}")
    text = text.replace("\r\n", "\n").strip("\n")
    return Row(data={"text": text}, path=name, line=line)
