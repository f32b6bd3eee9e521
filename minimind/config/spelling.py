"""Guesses which known name a mistyped one was meant to be, for every name that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

_MOST = 3
_BEST_BY = 0.1
"""Guesses whose similarity is this much below the best one's are left out."""
_LONG_ENOUGH, _LONG, _VERY_LONG = 4, 8, 10
"""The least lengths at which a name counts as misspelt by one letter too many, by one wrong letter,
and by several mistakes: in a shorter name such a mistake can make another word."""
_NEARLY_ALL = 0.9
_OF_AN_ID = ("_id", "_ids")
"""Endings that make another name, not a misspelling: conversation_id is not a misspelt
conversation."""


def find_alike(given: str, known: Iterable[str]) -> list[str]:
    """Gives the known names that look like the given one, the most similar first; if there are
    none, those that contain it. Upper case and the kind of dash do not matter."""
    names = {name: _fold(name) for name in known}
    word = _fold(given)
    if not word:
        return []
    shares = {
        name: difflib.SequenceMatcher(a=folded, b=word).ratio() for name, folded in names.items()
    }
    close = difflib.get_close_matches(word, set(names.values()), _MOST, 0.6)
    best = max((share for share in shares.values()), default=0.0)
    found = [name for name, folded in names.items() if folded in close]
    found = [name for name in found if shares[name] >= best - _BEST_BY]
    if not found and len(word) >= 3:
        found = [name for name, folded in names.items() if word in folded]
    return sorted(found, key=lambda name: -shares[name])[:_MOST]


@lru_cache(maxsize=4096)
def find_slip(given: str, known: tuple[str, ...]) -> str | None:
    """Gives the known name that `given` certainly misspells, or None. Certain are: another case or
    dash, one letter too many or too few, two letters exchanged; in a long name also a wrong letter,
    and in a very long one several of these."""
    word = _letters(given)
    is_id = given.lower().endswith(_OF_AN_ID)
    for name in known:
        if is_id and not name.endswith(_OF_AN_ID):
            continue
        if _is_slip(word, _letters(name)):
            return name
    return None


def _is_slip(word: str, meant: str) -> bool:
    if word == meant:
        return True
    if min(len(word), len(meant)) >= _VERY_LONG:
        share = difflib.SequenceMatcher(a=meant, b=word).ratio()
        if share >= _NEARLY_ALL:
            return True
    if len(word) == len(meant):
        wrong = [at for at, letter in enumerate(meant) if word[at] != letter]
        if len(wrong) == 1:
            return len(meant) >= _LONG
        swapped = word[wrong[0]] == meant[wrong[1]] and word[wrong[1]] == meant[wrong[0]]
        return wrong == [wrong[0], wrong[0] + 1] and swapped
    shorter, longer = sorted((word, meant), key=len)
    is_long = len(longer) >= _LONG_ENOUGH <= len(meant)
    return (
        is_long
        and len(longer) == len(shorter) + 1
        and any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
    )


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def did_you_mean(given: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Gives " (did you mean hidden_size?)", or "" where no known name is similar. `spell` turns a
    name into what the user has to write."""
    alike = [spell(name) for name in find_alike(given, known)]
    if not alike:
        return ""
    *others, last = alike
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"


def did_you_mean_file(path: Path) -> str:
    """Gives the same text for a path whose folder exists and whose file does not."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, beside, lambda name: str(path.parent / name))


def _fold(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")
