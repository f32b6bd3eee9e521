from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from minimind.data.prefetch import prefetched


def _threads() -> int:
    return sum(thread.name.startswith("data-prefetch") for thread in threading.enumerate())


def test_the_same_items_in_the_same_order() -> None:
    for items in (list(range(50)), [], [None, None]):
        assert list(prefetched(iter(items))) == items
    assert _threads() == 0


def test_it_runs_ahead_but_not_far() -> None:
    made = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            if number == 3:
                third.set()
            yield number

    reader = prefetched(items())
    assert next(reader) == 0
    assert third.wait(10)
    assert len(made) <= 4
    reader.close()
    assert _threads() == 0


def test_an_exception_comes_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    reader = prefetched(items())
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)
    assert _threads() == 0
