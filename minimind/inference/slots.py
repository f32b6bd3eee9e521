"""Which slot of the cache a sequence gets, and how much of its prompt is there already."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from minimind.model.kv_cache import KVCache

WORTH_WAITING = 32
"""Tokens of a prompt that are rather copied in a few steps than computed beside the same ones."""


@dataclass(slots=True)
class Slot:
    """One slot of the cache and what it holds, also after its sequence has ended."""

    index: int
    ids: list[int] = field(default_factory=list)
    """The tokens whose keys and values are there, from position 0 on."""
    adapter: str | None = None
    """Under which they were computed."""
    coming: Sequence[int] = ()
    """The prompt that is being computed into it."""
    in_use: bool = False
    last_used: int = 0


class SlotTable:
    """Gives out slots. Ended sequences stay in theirs until it is needed, so that a prompt that
    goes on from one, or shares its beginning, is not computed again."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._slots = [Slot(index) for index in range(cache.num_slots)]
        self._clock = itertools.count(1)

    @property
    def num_free(self) -> int:
        return sum(not slot.in_use for slot in self._slots)

    def take(self, prompt_ids: Sequence[int], adapter: str | None) -> Slot | None:
        """A slot that holds the longest beginning of the prompt found anywhere, without its last
        token (whose logits are wanted); None where all are in use, or where much more of it is
        just being computed for another."""
        free = [slot for slot in self._slots if not slot.in_use]
        if not free:
            return None
        wanted = list(prompt_ids[:-1])
        same = [slot.adapter == adapter for slot in self._slots]
        shared = [same[s.index] * common_prefix(s.ids, wanted) for s in self._slots]
        best = max(
            self._slots,
            key=lambda slot: (shared[slot.index], not slot.in_use, -slot.last_used),
        )
        length = shared[best.index]
        # What has come already is among `shared`.
        coming = (slot for slot in self._slots if len(slot.ids) < len(slot.coming))
        soon = max((same[s.index] * common_prefix(s.coming, wanted) for s in coming), default=0)
        if soon - length >= WORTH_WAITING:
            return None
        chosen, oldest = best, min(free, key=lambda slot: slot.last_used)
        # Whatever loses fewer tokens that may be wanted again: to cut this one short, or to give up
        # the one that rested longest.
        if best.in_use or len(best.ids) - length > len(oldest.ids):
            chosen = oldest
            if length:
                self._cache.copy_prefix(best.index, chosen.index, length)
        chosen.ids = wanted[:length]
        chosen.adapter, chosen.coming = adapter, wanted
        chosen.in_use = True
        return chosen

    def release(self, slot: Slot) -> None:
        slot.in_use = False
        slot.coming = ()
        slot.last_used = next(self._clock)

    def forget_all(self) -> None:
        """Nothing that is in any slot is to be found again."""
        for slot in self._slots:
            slot.ids = []

    def forget(self, slot: Slot) -> None:
        """What `slot` holds is not to be relied on."""
        slot.ids = []
        self._cache.clear(slot.index)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with. Halving intervals, so that slices are compared in C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
