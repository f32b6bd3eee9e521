"""Reads a JSON array of rows as a stream, without holding the array in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from minimind.config.json_file import check_depth, no_duplicates
from minimind.data.jsonl import BadRow, json_type
from minimind.errors import DataError
from minimind.types import Row

MAX_ROW_CHARS = 256 << 20
_CHUNK_BYTES = 1 << 20
_SPACE = " \t\r\n"
_ENDS_EARLY = 32
"""A parse error within this many characters of the end of the text read so far may only mean that
the row goes on."""


def read_array(file: BinaryIO, name: str) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each element as a row, with the number of bytes of text read so far; an element that
    is no object becomes a BadRow. Raises DataError where the array itself breaks off."""
    text = _Text(file, name)
    decoder = json.JSONDecoder(object_pairs_hook=no_duplicates)
    text.skip("[")
    number = 0
    while not text.skip("]"):
        number += 1
        row = text.decode(decoder, number)
        if isinstance(row, dict):
            yield Row(data=row, path=name, line=number, unit="row"), text.num_bytes
        else:
            reason = f"{json_type(row)} where a JSON object is expected"
            yield BadRow(name, number, reason, "row"), text.num_bytes
        if not text.skip(","):
            if text.skip("]"):
                break
            if not text.peek():
                raise DataError(
                    f"{text.place()}: ends after row {number} of its JSON array, "
                    "without a ]: the file is cut short"
                )
            raise DataError(f"{text.place()}: no JSON array: no comma after row {number}")
    if rest := text.peek():
        raise DataError(f"{name}: goes on after the end of its JSON array, with {rest!r}")


class _Text:
    """Holds the part of a file that is being parsed."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._chunk = "", 0, _CHUNK_BYTES
        self._lines = 0
        self.num_bytes = 0

    def place(self) -> str:
        """Gives the current place, such as `a.json:7`."""
        return f"{self._name}:{self._line(self._at)}"

    def _line(self, at: int) -> int:
        return self._lines + self._text.count("\n", 0, at) + 1

    def skip(self, sign: str) -> bool:
        """Skips the character `sign` if it comes next; tells whether it did."""
        found = self.peek() == sign
        self._at += found
        return found

    def peek(self) -> str:
        """Gives the next character that is not white space, without skipping it; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def decode(self, decoder: json.JSONDecoder, number: int) -> object:
        """Parses the next value, and reads as much of the file as that needs."""
        self.peek()
        self._chunk = _CHUNK_BYTES
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                check_depth(self._text[self._at : end], value)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    error.pos > len(self._text) - _ENDS_EARLY
                )
                if is_cut and self._read():
                    continue
                place = f"{self._name}:{self._line(error.pos)}"
                if is_cut:
                    raise DataError(
                        f"{place}: ends within row {number} of its JSON array: the file is cut "
                        f"short ({error.msg})"
                    ) from None
                raise DataError(
                    f"{place}: not JSON: {error.msg} (in row {number} of the array)"
                ) from None
            except (RecursionError, ValueError) as error:
                raise DataError(f"{self._name}: row {number}: not usable JSON: {error}") from None
            else:
                # A number at the end of the text may go on.
                if end < len(self._text) or not self._read():
                    self._at = end
                    return value

    def _read(self) -> bool:
        """Reads more of the file, twice as much at each call for the same row."""
        chunk = self._file.read(self._chunk)
        self._chunk *= 2
        self.num_bytes += len(chunk)
        try:
            more = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = self.num_bytes - len(chunk) + error.start + 1
            raise DataError(f"{self._name}: not UTF-8 near byte {at}") from None
        self._lines += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        if len(self._text) > MAX_ROW_CHARS + 2 * self._chunk:
            raise DataError(f"{self._name}: a row is longer than {MAX_ROW_CHARS >> 20} MiB")
        return bool(chunk)
