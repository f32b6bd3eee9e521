"""The forms in which people write rows, and what turns a row of each into the project's own.

A dialect is one form for one kind of row. Which one a file is in shows in its first rows, or
--format names it; then all rows of the file are read so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minimind.data.jsonl import RowProblem
from minimind.data.row_keys import KeyTable

Data = dict[str, Any]
Matches = Callable[[Mapping[str, Any]], bool]

VERSION = 2
"""Part of the cache key: raise it with every change of what a dialect gives."""
OWN = "minimind"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """One form of row."""

    name: str
    """For --format; the same for what one project writes in rows of several kinds."""
    title: str
    """For people."""
    example: str
    keys: KeyTable
    """Of the row itself."""
    matches: Matches
    """Whether a row is in this form: by few keys, so that one with a mistake still is."""
    convert: Callable[[Data, set[str]], Data]
    """(row, keys to report) -> the row in the project's own form. Raises RowProblem."""
    targets: str = ""
    """What is learned of such a row, where the project's own form says otherwise."""

    def read(self, data: Data, unread: set[str]) -> Data:
        """The row in the project's own form. Raises RowProblem."""
        self.keys.check(data, unread)
        return self.convert(data, unread)


def find_dialect(dialects: Iterable[Dialect], data: Mapping[str, Any]) -> Dialect | None:
    """The first that the row is in the form of."""
    return next((dialect for dialect in dialects if dialect.matches(data)), None)


def has_turns(value: object, key: str) -> bool:
    """Whether this is a list of turns of which the first names its speaker so."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]
    )


def as_text(value: object, what: str) -> str:
    """A text that may be missing. Raises RowProblem for what is none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowProblem(f"{what} is no string")
    return value
