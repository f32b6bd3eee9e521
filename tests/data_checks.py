"""Checks what must hold for every data format."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.jsonl import BadRow
from minimind.types import PairSample, Sample


def check_middle_is_bad(found: Sequence[Sample | PairSample | BadRow], reason: str) -> None:
    """Checks that of three rows only the second is refused, and for `reason`."""
    first, bad, last = found
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("a.jsonl:2: ")
    assert reason in bad.reason
    assert not isinstance(first, BadRow)
    assert not isinstance(last, BadRow)
