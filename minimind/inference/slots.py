"""Which slot of the cache a sequence gets, and how much of its prompt is there already."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.inference.generation import Generation
from minimind.model.kv_cache import KVCache

WORTH_WAITING = 32
"""Tokens of a prompt that are rather copied in a few steps than computed beside the same ones."""


class SlotTable:
    """Gives out slots. Ended sequences stay in theirs until it is needed, so that a prompt that
    goes on from one, or shares its beginning, is not computed again."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._free = list(range(cache.num_slots))
        """The one that rested longest comes first."""
        self._held: list[Generation | None] = [None] * cache.num_slots
        """The sequence that is in each slot, or was last."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, generation: Generation) -> bool:
        """Gives it a slot that holds the longest beginning of its prompt found anywhere, without
        the last token (whose logits are wanted). Gives none where all are in use, or where much
        more of the prompt is just being computed for another."""
        if not self._free:
            return False
        wanted, soon = generation.ids[:-1], 0
        shared = [0] * len(self._held)
        for slot, other in enumerate(self._held):
            if other is not None and other.request.adapter == generation.request.adapter:
                same = common_prefix(other.ids, wanted)
                shared[slot] = min(same, other.num_computed)
                if other.is_running:
                    soon = max(soon, min(same, len(other.request.prompt_ids) - 1))
        in_use = [slot for slot in range(len(shared)) if slot not in self._free]
        best = max([*self._free, *in_use], key=shared.__getitem__)
        length = shared[best]
        if soon - length >= WORTH_WAITING:
            return False
        chosen, oldest = best, self._free[0]
        # Whatever loses fewer tokens that may be wanted again: to cut this one short, or to give up
        # the one that rested longest.
        if best in in_use or self._num_held(best) - length > self._num_held(oldest):
            chosen = oldest
            if length:
                self._cache.copy_prefix(best, chosen, length)
        self._free.remove(chosen)
        self._held[chosen] = generation
        generation.slot = chosen
        generation.num_computed = generation.cached_tokens = length
        return True

    def release(self, generation: Generation) -> None:
        """Frees its slot, which keeps what was computed: unless it failed, when that is not to be
        relied on."""
        self._free.append(generation.slot)
        if generation.finish_reason == "error":
            self._held[generation.slot] = None
            self._cache.clear(generation.slot)

    def forget_all(self) -> None:
        """Nothing that is in any slot is to be found again."""
        self._held = [None] * len(self._held)

    def _num_held(self, slot: int) -> int:
        held = self._held[slot]
        return held.num_computed if held else 0


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
