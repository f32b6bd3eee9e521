"""Gives sequences slots of the cache, and finds the part of a prompt that is already there."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.inference.generation import Generation
from minimind.model.kv_cache import KVCache

WORTH_WAITING = 32
"""The number of prompt tokens from which a sequence waits and copies them from another sequence
that is computing them, instead of computing them itself."""


class SlotTable:
    """Gives out slots. Ended sequences stay in theirs until the slot is needed, so that a prompt
    which continues one, or shares its beginning, is not computed again."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._free = list(range(cache.num_slots))
        """Free slots, the longest unused first."""
        self._held: list[Generation | None] = [None] * cache.num_slots
        """The sequence that is in each slot, or was last."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, generation: Generation) -> bool:
        """Gives the sequence a slot that holds the longest beginning of its prompt found anywhere,
        without the last token (whose logits are wanted). Gives none where all are in use, or where
        another sequence is just computing much more of the prompt."""
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
        """Frees the sequence's slot, which keeps its tokens; after a failure they are dropped as
        unreliable."""
        self._free.append(generation.slot)
        if generation.finish_reason == "error":
            self._held[generation.slot] = None
            self._cache.clear(generation.slot)

    def forget_all(self) -> None:
        """Forgets the tokens in all slots, so that none are found again."""
        self._held = [None] * len(self._held)

    def _num_held(self, slot: int) -> int:
        held = self._held[slot]
        return held.num_computed if held else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Counts the tokens that both begin with. It halves intervals, so that slices are compared in
    C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
