"""Reads an adapter's alphas. The adapter's file may come from anyone, and a regular expression in
it may take arbitrarily long."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.errors import CheckpointError
from minimind.runtime.bounded_call import BoundedCallError, call_bounded, limit_memory

_PLAIN = re.compile(r"[\w.]+")
"""Matches a name, or the last parts of one, as PEFT and this project write them."""


def read_alphas(values: Mapping[str, Any], names: Sequence[str], origin: str) -> dict[str, float]:
    """Gives each linear's alpha by PEFT's rule: the alpha of the first pattern that the linear's
    name ends in, else lora_alpha. `values` is the content of adapter_config.json. Raises
    CheckpointError."""
    usual, patterns = values.get("lora_alpha", 8), values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{origin}: alpha_pattern is {patterns!r:.60}; it must be an object")
    for alpha in (usual, *patterns.values()):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise CheckpointError(f"{origin}: an alpha is {alpha!r:.60}; it must be a number")
    found = _find_patterns(list(patterns), names, origin)
    return {
        name: usual if pattern is None else patterns[pattern]
        for name, pattern in zip(names, found, strict=True)
    }


def _find_patterns(patterns: Sequence[str], names: Sequence[str], origin: str) -> list[str | None]:
    """Gives the first of `patterns` that each name ends in, by PEFT's rule, or None. Raises
    CheckpointError for one that is no regular expression or takes too long."""
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
        places = {pattern: place for place, pattern in enumerate(patterns)}
        return [
            min(_ends(name) & places.keys(), key=places.__getitem__, default=None) for name in names
        ]
    try:
        return call_bounded("minimind.lora.alphas:match_patterns", (patterns, names))
    except BoundedCallError as error:
        shown = ", ".join(repr(pattern[:60]) for pattern in patterns[:3])
        raise CheckpointError(
            f"{origin}: alpha_pattern of {shown} cannot be used: {error}"
        ) from None


def _ends(name: str) -> set[str]:
    """Lists the whole parts that a dotted name ends in: for a.b.c these are a.b.c, b.c and c."""
    parts = name.split(".")
    return {".".join(parts[first:]) for first in range(len(parts))}


def match_patterns(given: tuple[Sequence[str], Sequence[str]]) -> list[str | None]:
    """Does the work of `_find_patterns` with Python's regular expressions, in a worker process."""
    limit_memory()
    patterns, names = given
    compiled: dict[str, re.Pattern[str]] = {}
    for pattern in patterns:
        try:
            compiled[pattern] = re.compile(rf"(.*\.)?({pattern})")
        except re.error as error:
            raise CheckpointError(f"{pattern[:60]!r} is no regular expression: {error}") from None
    return [next((p for p in patterns if compiled[p].fullmatch(name)), None) for name in names]
