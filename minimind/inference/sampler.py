"""The next tokens of a whole batch, each sequence with its own settings and random numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.inference.filters import draw, filtered_probs
from minimind.inference.pending_tokens import PendingTokens, pack
from minimind.inference.row_settings import Rows, RowSettings
from minimind.inference.sampling import SamplingParams
from minimind.runtime.devices import send

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class _Opened:
    number: int
    params: SamplingParams
    random: random.Random
    """One number a token, whoever shares the batch and whatever the device."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What stays as it is while the same sequences go on."""

    sequences: list[int]
    params: list[SamplingParams]
    settings: RowSettings
    random: list[random.Random]
    reported: list[int]


class Sampler:
    """Chooses tokens, for a host that waits for them. What penalties count is kept by slot."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._num_slots, self._vocab_size, self._device = num_slots, vocab_size, device
        self._count_opened = itertools.count()
        self._opened: dict[int, _Opened] = {}
        self._seen_SV: Tensor | None = None
        self._made_SV: Tensor | None = None
        self._batch: _Batch | None = None

    def open(self, slot: int, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        """A new sequence in `slot`."""
        self._opened[slot] = _Opened(next(self._count_opened), params, random.Random(params.seed))
        if not params.penalizes:
            return
        if self._seen_SV is None or self._made_SV is None:
            size = (self._num_slots, self._vocab_size)
            self._seen_SV = torch.zeros(size, dtype=torch.bool, device=self._device)
            self._made_SV = torch.zeros(size, device=self._device)
        # Assigning a number to a part of a tensor would have a GPU's host wait: it is copied there.
        self._seen_SV[slot].zero_().index_fill_(0, send(prompt_ids, self._device), True)
        self._made_SV[slot].zero_()

    def sequences(self, slots: Sequence[int]) -> list[int]:
        """A number for the sequence in each slot, which no other ever has."""
        return [self._opened[slot].number for slot in slots]

    def sample(self, logits_BV: Tensor, slots: Sequence[int]) -> PendingTokens:
        """The next token of each sequence in `slots` after its fp32 logits [B, V]; NO_TOKEN where
        they are not finite."""
        key = self.sequences(slots)
        if self._batch is None or self._batch.sequences != key:
            opened = [self._opened[slot] for slot in slots]
            params = [one.params for one in opened]
            self._batch = _Batch(
                key,
                params,
                RowSettings.build(params, slots, self._vocab_size, self._device),
                [one.random for one in opened if one.params.temperature > 0],
                [i for i, one in enumerate(params) if one.logprobs is not None],
            )
        batch, uniform_R = self._batch, None
        if batch.random:
            numbers = [one.random() for one in batch.random]
            uniform_R = send(numbers, self._device, torch.float64)
        ids_B = self._choose(logits_BV, batch.settings, uniform_R)
        packed = pack(logits_BV, ids_B, batch.settings)
        return PendingTokens(packed, batch.params, batch.settings.asked, batch.reported)

    def _choose(self, logits_BV: Tensor, settings: RowSettings, uniform_R: Tensor | None) -> Tensor:
        """Token ids, int64 [B]. `uniform_R`: a number for each of `settings.drawn`."""
        asked, drawn = settings.asked, settings.drawn
        if asked.penalties:
            logits_BV = self._penalize(logits_BV, settings.penalized)
        if uniform_R is None:
            best_B, ids_B = logits_BV.max(-1)
        else:
            probs_RV = filtered_probs(drawn.take(logits_BV), drawn, asked)
            drawn_R = draw(probs_RV, uniform_R)
            if asked.has_greedy:
                best_B, ids_B = logits_BV.max(-1)
                ids_B = drawn.put(ids_B, drawn_R)
            else:
                best_B, ids_B = logits_BV.amax(-1), drawn_R
        if settings.source_B is not None:
            best_B, ids_B = best_B[settings.source_B], ids_B[settings.source_B]
        if asked.penalties:
            self._count(settings.penalized.take(ids_B), settings.penalized)
        return ids_B.masked_fill(~best_B.isfinite(), NO_TOKEN)

    def _penalize(self, logits_BV: Tensor, rows: Rows) -> Tensor:
        assert self._seen_SV is not None
        assert self._made_SV is not None
        slots_R = rows.whole_column("slot")
        repetition, presence, frequency = (
            rows.column(f"{name}_penalty")[:, None]
            for name in ("repetition", "presence", "frequency")
        )
        penalized, made = rows.take(logits_BV), self._made_SV[slots_R]
        scaled = torch.where(penalized > 0, penalized / repetition, penalized * repetition)
        penalized = torch.where(self._seen_SV[slots_R], scaled, penalized)
        penalized = penalized - frequency * made - presence * (made > 0)
        return rows.put(logits_BV, penalized)

    def _count(self, ids_R: Tensor, rows: Rows) -> None:
        assert self._seen_SV is not None
        assert self._made_SV is not None
        slots_R = rows.whole_column("slot")
        self._seen_SV[slots_R, ids_R] = torch.ones_like(ids_R, dtype=torch.bool)
        self._made_SV[slots_R, ids_R] += 1
