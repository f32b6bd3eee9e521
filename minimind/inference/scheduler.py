"""Which tokens the next forward computes: one of each running sequence beside pieces of prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import Delta, FinishReason, GenerationRequest
from minimind.inference.slots import Slot, SlotTable
from minimind.inference.text_stream import TextStream
from minimind.model.cached_attention import Piece


@dataclass(slots=True)
class Generation:
    """One request on its way."""

    request_id: int
    request: GenerationRequest
    text: TextStream
    ids: list[int]
    """The prompt and what was made."""
    slot: Slot | None = None
    """None while it waits."""
    cached_tokens: int = 0

    @property
    def num_made(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def ends_next(self) -> bool:
        """Whether it has ended, or does with its next token whatever that is."""
        return self.slot is None or self.num_made + 1 >= self.request.params.max_new_tokens

    def delta(
        self,
        *,
        text: str = "",
        ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        finish_reason: FinishReason | None = None,
    ) -> Delta:
        """What a step gave it, with the counts so far."""
        return Delta(
            request_id=self.request_id,
            text=text,
            ids=ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.num_made,
        )


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A piece of one sequence."""

    generation: Generation
    piece: Piece
    completes: bool
    """`generation.ids` ends with it: its last token's logits are wanted."""


class Scheduler:
    """First come, first served: a sequence waits until a slot is free, then its prompt is computed
    in pieces of at most `max_prefill` tokens a step, all prompts together, while those that run
    get their next token in every step."""

    def __init__(self, slots: SlotTable, max_prefill: int) -> None:
        self._slots = slots
        self._max_prefill = max_prefill
        self.waiting: deque[Generation] = deque()
        self.running: dict[int, Generation] = {}
        self.adapter: str | None = None
        """Of the batch given last."""

    def admit(self) -> list[Generation]:
        """Gives free slots to those that wait; who got one."""
        admitted: list[Generation] = []
        while self.waiting:
            first = self.waiting[0]
            slot = self._slots.take(first.ids, first.request.adapter)
            if slot is None:
                break
            generation = self.waiting.popleft()
            generation.slot = slot
            generation.cached_tokens = len(slot.ids)
            self.running[generation.request_id] = generation
            admitted.append(generation)
        return admitted

    def next_batch(self) -> list[Scheduled]:
        """Single tokens first, ordered by slot; all of one adapter, in turns."""
        wanted = list(dict.fromkeys(g.request.adapter for g in self.running.values()))
        if not wanted:
            return []
        after = wanted.index(self.adapter) + 1 if self.adapter in wanted else 0
        self.adapter = wanted[after % len(wanted)]
        batch = list(self._pieces())
        batch.sort(key=lambda one: (one.piece.count > 1, one.piece.slot))
        return batch

    def following(self, batch: Sequence[Scheduled]) -> list[Scheduled]:
        """The step after `batch`, known before its tokens are: one token more of each. Empty where
        others run or could start, or where one of these is certain to have ended by then. Of those
        that end unforeseen, a token is made in vain."""
        others = len(batch) < len(self.running) or (self.waiting and self._slots.num_free)
        if others or any(one.generation.ends_next for one in batch):
            return []
        pieces = (Piece(slot=one.piece.slot, start=one.piece.end, count=1) for one in batch)
        return [
            Scheduled(one.generation, piece, completes=True)
            for one, piece in zip(batch, pieces, strict=True)
        ]

    def release(self, generation: Generation) -> None:
        """Wherever it is; a slot keeps what was computed."""
        if generation.slot is None:
            self.waiting.remove(generation)
            return
        del self.running[generation.request_id]
        self._slots.release(generation.slot)
        generation.slot = None

    def _pieces(self) -> Iterator[Scheduled]:
        left = self._max_prefill
        for generation in self.running.values():
            slot = generation.slot
            assert slot is not None
            if generation.request.adapter != self.adapter:
                continue
            start = len(slot.ids)
            missing = count = len(generation.ids) - start
            if count > 1:
                count = min(count, left)
                left -= count
            if count:
                piece = Piece(slot=slot.index, start=start, count=count)
                yield Scheduled(generation, piece, completes=count == missing)
