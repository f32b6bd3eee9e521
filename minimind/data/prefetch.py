"""Runs an iterator ahead of its reader, in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from minimind.types import BatchT

ItemT = TypeVar("ItemT")
_POLL_S = 0.1


def prefetched(items: Iterator[ItemT], ahead: int) -> Iterator[ItemT]:
    """Yields the same items, of which up to `ahead` are computed before they are asked for. An
    exception of `items` is raised in its place in the order. Closing or dropping the generator ends
    the thread."""
    done = object()
    ready: queue.Queue[object] = queue.Queue(maxsize=max(1, ahead))
    stopped = threading.Event()

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(done)
        except BaseException as error:
            offer(_Failure(error))

    # A daemon thread, so that it does not keep the process alive when the reader dies.
    thread = threading.Thread(target=work, name="data-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def read_steps(
    batches_of: Callable[[int], list[BatchT]], steps: Iterable[int], pin: bool, ahead: int = 2
) -> Iterator[list[BatchT]]:
    """Yields the micro-batches of each step. A background thread builds them, `ahead` steps before
    they are used, and with `pin` in page-locked memory. Closing the iterator ends the thread."""

    def build() -> Iterator[list[BatchT]]:
        for step in steps:
            batches = batches_of(step)
            yield [batch.pin_memory() for batch in batches] if pin else batches

    return prefetched(build(), ahead)


def read_batches(batches: Iterable[BatchT], pin: bool, ahead: int = 2) -> Iterator[BatchT]:
    """Yields the batches, which a background thread reads `ahead` batches before they are used, and
    with `pin` moves to page-locked memory."""
    return prefetched((batch.pin_memory() if pin else batch for batch in batches), ahead)


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
