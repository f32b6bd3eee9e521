"""What must hold of every data format and of all sample data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minimind.data.jsonl import BadRow
from minimind.samples.files import SampleData, write_sample
from minimind.types import Sample


def check_middle_is_bad(found: Sequence[Sample | BadRow], reason: str) -> None:
    """Checks that of three rows of a.jsonl the second is refused for `reason`, and no other."""
    first, bad, last = found
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("a.jsonl:2: ")
    assert reason in bad.reason
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def check_seed_decides(folder: Path, data: SampleData) -> None:
    """Checks that the same seed writes the same bytes, and another seed others."""
    paths = [folder / letter for letter in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_sample(path, "val", data, seed)
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second != third
