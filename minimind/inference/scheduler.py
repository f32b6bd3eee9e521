"""Schedules the tokens of the next forward: one of each running sequence, and pieces of prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from minimind.inference.generation import Generation
from minimind.inference.slots import SlotTable


class Scheduler:
    """Serves sequences in order: each waits until a slot is free. Its prompt is then computed in
    pieces, of at most `max_prefill` tokens a step over all prompts, while the running sequences get
    their next token in every step."""

    def __init__(self, slots: SlotTable, max_prefill: int) -> None:
        self._slots = slots
        self._max_prefill = max_prefill
        self.waiting: deque[Generation] = deque()
        self.running: dict[int, Generation] = {}
        self._adapter: str | None = None
        """The adapter of the batch given last."""

    def admit(self) -> list[Generation]:
        """Gives free slots to waiting sequences, and lists the sequences that got one."""
        admitted: list[Generation] = []
        while self.waiting and self._slots.take(self.waiting[0]):
            generation = self.waiting.popleft()
            self.running[generation.id] = generation
            admitted.append(generation)
        return admitted

    def next_batch(self) -> list[Generation]:
        """Schedules tokens of the given sequences. Single tokens come first, ordered by slot; all
        sequences of a batch have one adapter, in turns."""
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
        """Tells whether the step after this one, of single tokens, is known before its tokens are:
        the same sequences, each one token further. It is not where other sequences run or could
        start, or where one of these is certain to have ended by then. A sequence that ends
        unforeseen gets one token in vain."""
        others = len(batch) < len(self.running) or (self.waiting and self._slots.num_free)
        return not others and not any(one.ends_next for one in batch)

    def release(self, generation: Generation) -> None:
        """Removes a sequence that has ended, wherever it is."""
        if self.running.pop(generation.id, None) is None:
            self.waiting.remove(generation)
        else:
            self._slots.release(generation)
