from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minimind.data.prefetch import prefetched, read_batches


def _threads() -> int:
    return sum(thread.name == "data-prefetch" for thread in threading.enumerate())


def test_the_same_items_in_the_same_order() -> None:
    assert list(prefetched(iter(range(50)), ahead=3)) == list(range(50))
    assert list(prefetched(iter([]), ahead=3)) == []
    assert list(prefetched(iter([None, None]), ahead=1)) == [None, None]
    assert _threads() == 0


def test_it_runs_ahead_but_not_far() -> None:
    made = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 3:
                third.set()
            yield number

    reader = prefetched(items(), ahead=2)
    assert next(reader) == 0
    assert third.wait(10)
    assert len(made) <= 4
    reader.close()
    assert _threads() == 0


def test_an_exception_comes_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    reader = prefetched(items(), ahead=5)
    assert next(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reader)
    assert _threads() == 0


def test_closing_early_ends_the_thread() -> None:
    reader = prefetched(iter(range(10**9)), ahead=2)
    assert next(reader) == 0
    reader.close()
    assert _threads() == 0


class Item:
    """Stands for a batch."""

    def __init__(self) -> None:
        self.pinned_by = ""

    def pin_memory(self) -> Item:
        self.pinned_by = threading.current_thread().name
        return self


@pytest.mark.parametrize("pin", [False, True])
def test_batches_are_pinned_in_the_background_where_asked(pin: bool) -> None:
    items: Any = [Item(), Item(), Item()]
    assert list(read_batches(items, pin)) == items
    assert {item.pinned_by for item in items} == {"data-prefetch" if pin else ""}
    assert _threads() == 0
