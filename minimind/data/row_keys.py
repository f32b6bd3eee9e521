"""Which keys of a row are read: each is used, refused with what to do, or reported. None vanishes.

A report names a key with where it stands: "'source'" is a row's, "'name' of turns" a turn's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minimind.config.spelling import find_slip
from minimind.data.jsonl import RowProblem

_MOST_KNOWN = 4096
_EMPTY: tuple[Any, ...] = ("", [], {})
"""Values that say nothing: a key that holds one, or null, is as if it were not there."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A key that cannot be used and would change what the row means."""

    why: str
    """And what to do."""
    applies: Callable[[Any], bool] = lambda value: True
    """Whether the value is of the kind that is refused, else the key is reported."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyTable:
    """The keys of one kind of object: of a row in one form, of a turn, of a tool call."""

    of: str
    """Follows a reported key: " of turns"; nothing for a row's own."""
    used: Mapping[str, str]
    """By key, what it does."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    hands_on: bool = False
    """Every other key goes on with the row, to functions of the user's."""
    _others: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict, repr=False)
    """By the keys of an object those that are not used: objects of one file are much alike."""

    def check(self, data: Mapping[str, Any], unread: set[str]) -> None:
        """Adds to `unread` the keys that are reported. Raises RowProblem for one that is refused,
        or that is a slip of the pen."""
        keys = tuple(data)
        others = self._others.get(keys)
        if others is None:
            others = tuple(key for key in keys if key not in self.used)
            if len(self._others) < _MOST_KNOWN:
                self._others[keys] = others
        for key in others:
            value = data[key]
            if value is None:
                continue
            refusal = self.refused.get(key)
            if not refusal and (meant := find_slip(key, tuple(self.used))):
                missing = "" if meant in data else f'no key "{meant}"{self.of}: '
                raise RowProblem(
                    f'{missing}the key "{key}"{self.of} is not read (did you mean "{meant}"?); '
                    "mend it, or leave it out"
                )
            if value in _EMPTY:
                continue
            if refusal and refusal.applies(value):
                raise RowProblem(f'the key "{key}"{self.of}: {refusal.why}')
            if not self.hands_on:
                unread.add(f"'{key}'{self.of}")


def choose(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Gives the value under any of these names for one thing, None where none has one. Raises
    RowProblem where two have different ones."""
    found: dict[str, Any] = {}
    for key in keys:
        value = data.get(key)
        if value is not None and value != "":
            found[key] = value
    values = list(found.values())
    if any(value != values[0] for value in values):
        first, second, *_ = (f'"{key}"' for key in found)
        raise RowProblem(f"{first} and {second} differ, which name one thing: keep one of them")
    return values[0] if values else None
