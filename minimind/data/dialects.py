"""Converts rows from the forms in which people write them to the project's own form.

A dialect is one form for one kind of row. The first rows of a file show its dialect, or --format
names it; then all rows of the file are read in that dialect.
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
"""Part of the cache key: raise it with every change of a dialect's result."""
OWN = "minimind"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """Describes one form of row."""

    name: str
    """The name for --format; forms that one project uses for several kinds of row share it."""
    title: str
    """The name that people read."""
    example: str
    keys: KeyTable
    """The keys of the row itself."""
    matches: Matches
    """Tells whether a row is in this form. It looks at few keys, so that a row with a mistake still
    matches."""
    convert: Callable[[Data, set[str]], Data]
    """(row, keys to report) -> the row in the project's own form. Raises RowProblem."""
    targets: str = ""
    """The targets of such a row, where they differ from those of the project's own form."""

    def read(self, data: Data, unread: set[str]) -> Data:
        """Converts the row to the project's own form. Raises RowProblem."""
        self.keys.check(data, unread)
        return self.convert(data, unread)


def find_dialect(dialects: Iterable[Dialect], data: Mapping[str, Any]) -> Dialect | None:
    """Finds the first dialect that matches the row."""
    return next((dialect for dialect in dialects if dialect.matches(data)), None)


def has_turns(value: object, key: str) -> bool:
    """Tells whether the value is a list of turns of which the first names its speaker under
    `key`."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]
    )


def as_text(value: object, what: str) -> str:
    """Gives a text, "" where it is missing. Raises RowProblem for a value that is not a text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowProblem(f"{what} is no string")
    return value
