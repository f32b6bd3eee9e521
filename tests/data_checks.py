"""Checks what must hold for every data format and for all sample data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minimind.data.jsonl import BadRow
from minimind.samples.files import SampleData, write_sample
from minimind.types import Sample


def check_middle_is_bad(found: Sequence[Sample | BadRow], reason: str) -> None:
    """Checks that of three rows in a.jsonl only the second is refused, and for `reason`."""
    first, bad, last = found
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("a.jsonl:2: ")
    assert reason in bad.reason
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def check_seed_decides(folder: Path, data: SampleData) -> None:
    """Checks that equal seeds write equal bytes, and different seeds different ones."""
    paths = [folder / letter for letter in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_sample(path, "val", data, seed)
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second != third
