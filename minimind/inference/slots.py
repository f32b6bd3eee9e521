"""Assigns cache slots to sequences, and finds the part of a prompt that is already in the cache."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.inference.generation import Generation
from minimind.model.kv_cache import KVCache

WORTH_WAITING = 32
"""A sequence waits, to copy prompt tokens that another sequence is computing, if it can copy at
least this many; else it computes them itself."""


class SlotTable:
    """Assigns slots. The tokens of an ended sequence stay in its slot until the slot is needed, so
    that a prompt which continues it, or begins the same, is not computed again."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._free = list(range(cache.num_slots))
        """The free slots, the longest unused first."""
        self._held: list[Generation | None] = [None] * cache.num_slots
        """The sequence that each slot has, or had last."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, generation: Generation) -> bool:
        """Gives the sequence a slot with the longest beginning of its prompt that any slot holds,
        without the prompt's last token, whose logits are needed. Gives none (False) if all slots
        are in use, or if another sequence is just computing much more of the prompt."""
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
        # Takes the slot that loses fewer tokens: this one, whose tokens are cut to the shared
        # beginning, or the longest unused one, which loses all of its tokens.
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
        """Frees the sequence's slot. The slot keeps its tokens, except after an error, when they
        are not reliable."""
        self._free.append(generation.slot)
        if generation.finish_reason == "error":
            self._held[generation.slot] = None
            self._cache.clear(generation.slot)

    def forget_all(self) -> None:
        """Makes all tokens in the slots unusable for other sequences."""
        self._held = [None] * len(self._held)

    def _num_held(self, slot: int) -> int:
        held = self._held[slot]
        return held.num_computed if held else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Counts the tokens that both sequences begin with, by bisection, so that Python compares
    slices in C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
