"""Defines a dialect, a form in which people write rows, and converts such rows to the project's
form.

The first rows of a file show its dialect, or --format names it; then all rows of the file are read
in that dialect.
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
"""A part of the cache key; raise it whenever a dialect's result changes."""
OWN = "minimind"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialect:
    """Describes one form of row for one data format."""

    name: str
    """The name for --format. Forms by the same project for several data formats share it."""
    title: str
    """The name for messages."""
    example: str
    keys: KeyTable
    """The keys of the row itself."""
    matches: Matches
    """Tells whether a row is in this form. It examines few keys, so that a row with a mistake still
    matches."""
    convert: Callable[[Data, set[str]], Data]
    """Takes a row and a set to which it adds unread keys; gives the row in the project's form.
    Raises RowProblem."""
    targets: str = ""
    """Says what is learned from such a row, where that differs from the project's own form."""

    def read(self, data: Data, unread: set[str]) -> Data:
        """Checks the row's keys and converts it to the project's form; adds unread keys to
        `unread`. Raises RowProblem."""
        self.keys.check(data, unread)
        return self.convert(data, unread)


def find_dialect(dialects: Iterable[Dialect], data: Mapping[str, Any]) -> Dialect | None:
    """Gives the first dialect that matches the row, or None."""
    return next((dialect for dialect in dialects if dialect.matches(data)), None)


def has_turns(value: object, key: str) -> bool:
    """Tells whether the value is a list of turns whose first has the key `key`, which names the
    speaker."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]
    )


def as_text(value: object, what: str) -> str:
    """Gives a text, or "" for None. Raises RowProblem for any other value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowProblem(f"{what} is no string")
    return value
