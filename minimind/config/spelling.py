"""What a mistyped name may have meant: the one place that guesses, for every name a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

_MOST = 3
_BEST_BY = 0.1
"""A guess that is so much worse than the best one is left out."""


def find_alike(given: str, known: Iterable[str]) -> list[str]:
    """Gives the known names that are close to the given one, the closest first: by their letters,
    else those that hold it as a part. Case and the kind of dash do not count."""
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


def did_you_mean(given: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Gives " (did you mean hidden_size?)", or nothing where nothing is close. `spell` writes a
    name as it has to be given."""
    alike = [spell(name) for name in find_alike(given, known)]
    if not alike:
        return ""
    *others, last = alike
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"


def did_you_mean_file(path: Path) -> str:
    """The same for a path of which the folder is right and the name is not."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(path.name, beside, lambda name: str(path.parent / name))


def _fold(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")
