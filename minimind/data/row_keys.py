"""Decides what happens to each key of a row: it is used, refused with advice, or reported as
unread. None is dropped silently.

A report names a key and where it occurs: "'source'" is a row's key, "'name' of turns" a turn's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minimind.config.spelling import find_slip
from minimind.data.jsonl import RowProblem

_MOST_KNOWN = 4096
_EMPTY: tuple[Any, ...] = ("", [], {})
"""Values that count as empty: a key with one of these, or null, counts as missing."""
_FLAGS = ("on", "off", "yes", "no", "true", "false", "none", "low", "medium", "high")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refuses a key that cannot be used and would change the meaning of the row."""

    why: str
    """The reason, and what to do."""
    applies: Callable[[Any, Mapping[str, Any]], bool] = lambda value, read: True
    """Takes the value and the used keys beside it; tells whether the value is refused. If not, the
    key is reported as unread."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyTable:
    """Lists the keys of one kind of object: a row in one form, a turn, or a tool call."""

    of: str
    """The text that follows a reported key, such as " of turns"; "" for a row's own keys."""
    used: Mapping[str, str]
    """The keys that are used, each with its meaning."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    suspect: Callable[[str], Refusal | None] = lambda key: None
    """Takes an unknown key, and gives its refusal if it seems to change the meaning."""
    hands_on: bool = False
    """True where all other keys stay in the row, for the user's functions."""
    _others: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict, repr=False)
    """For each set of keys seen, those that are not used: the objects of a file are much alike."""

    def check(self, data: Mapping[str, Any], unread: set[str]) -> None:
        """Adds unread keys to `unread`. Raises RowProblem for a key that is refused or looks
        misspelt."""
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
            refusal = refusal or self.suspect(key)
            if refusal:
                read = {name: data[name] for name in keys if name in self.used}
                if refusal.applies(value, read):
                    raise RowProblem(f'the key "{key}"{self.of}: {refusal.why}')
            if not self.hands_on:
                unread.add(f"'{key}'{self.of}")


def is_prose(value: object) -> bool:
    """Tells whether the value is text for people, not a switch such as "on" or "high"."""
    if isinstance(value, list):
        return any(is_prose(item) for item in value)
    return isinstance(value, str) and bool(value.strip()) and value.strip().lower() not in _FLAGS


def is_number_like(value: object) -> bool:
    """Tells whether the value is a number or a switch, or a list of these."""
    if isinstance(value, list):
        return all(is_number_like(item) for item in value)
    return isinstance(value, bool | int | float) or (
        isinstance(value, str) and value.strip().lower() in _FLAGS
    )


def choose(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Gives the value of a property that may have any of the names `keys`; None where all are
    missing. Raises RowProblem where two of them have different values."""
    found: dict[str, Any] = {}
    for key in keys:
        value = data.get(key)
        if value is not None and value != "":
            found[key] = value
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):  # NaN is not even itself
        first, second, *_ = (f'"{key}"' for key in found)
        raise RowProblem(f"{first} and {second} differ, which name one thing: keep one of them")
    return values[0] if values else None
