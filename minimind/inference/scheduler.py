"""Schedules the tokens of the next forward: one of each running sequence, and pieces of prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from minimind.inference.generation import Generation
from minimind.inference.slots import SlotTable


class Scheduler:
    """Serves sequences in the order of their arrival: each waits for a free slot. Its prompt is
    then computed in pieces, at most `max_prefill` tokens per step over all prompts, while the
    running sequences get their next token in every step."""

    def __init__(self, slots: SlotTable, max_prefill: int) -> None:
        self._slots = slots
        self._max_prefill = max_prefill
        self.waiting: deque[Generation] = deque()
        self.running: dict[int, Generation] = {}
        self._adapter: str | None = None
        """The adapter of the last batch."""

    def admit(self) -> list[Generation]:
        """Gives free slots to waiting sequences; lists those that got one."""
        admitted: list[Generation] = []
        while self.waiting and self._slots.take(self.waiting[0]):
            generation = self.waiting.popleft()
            self.running[generation.id] = generation
            admitted.append(generation)
        return admitted

    def next_batch(self) -> list[Generation]:
        """Gives the sequences of the next forward, after setting how many tokens of each it
        computes. Sequences with a single token come first, ordered by slot. All have the same
        adapter; adapters take turns."""
        wanted = list(dict.fromkeys(g.request.adapter for g in self.running.values()))
        if not wanted:
            return []
        after = wanted.index(self._adapter) + 1 if self._adapter in wanted else 0
        self._adapter = wanted[after % len(wanted)]
        batch, left = [], self._max_prefill
        for generation in self.running.values():
            if generation.request.adapter != self._adapter:
                continue
            count = len(generation.ids) - generation.num_computed
            if count > 1:
                count = min(count, left)
                left -= count
            if count:
                generation.num_scheduled = count
                batch.append(generation)
        batch.sort(key=lambda one: (one.num_scheduled > 1, one.slot))
        return batch

    def goes_on(self, batch: Sequence[Generation]) -> bool:
        """Tells whether the next step, of single tokens, is certain before this one's tokens are
        known: the same sequences, each one token further. It is not certain if other sequences are
        running or could start, or if one of these must end with this step. A sequence that ends
        unexpectedly gets one token too many."""
        others = len(batch) < len(self.running) or (self.waiting and self._slots.num_free)
        return not others and not any(one.ends_next for one in batch)

    def release(self, generation: Generation) -> None:
        """Removes a sequence that has ended, whether it is waiting or running."""
        if self.running.pop(generation.id, None) is None:
            self.waiting.remove(generation)
        else:
            self._slots.release(generation)
