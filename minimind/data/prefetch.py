"""Runs an iterator ahead of its reader, in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
_AHEAD = 3


def prefetched(items: Iterator[ItemT]) -> Iterator[ItemT]:
    """Yields the same items, of which up to three are computed before they are asked for. An
    exception of `items` is raised in its place in the order. Closing or dropping the generator ends
    the thread."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data-prefetch")
    try:
        pending = deque(pool.submit(items.__next__) for _ in range(_AHEAD))
        while True:
            try:
                item = pending.popleft().result()
            except StopIteration:
                return
            pending.append(pool.submit(items.__next__))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
