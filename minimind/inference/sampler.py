"""The next tokens of a whole batch, each sequence with its own settings and random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.inference.sampling import SamplingParams, draw, filtered_probs
from minimind.runtime.devices import send

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class _Opened:
    params: SamplingParams
    random: random.Random
    """One number a token, whoever shares the batch and whatever the device."""


class Sampler:
    """Chooses tokens on the device of the logits. What penalties count is kept by slot."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._size, self._device = (num_slots, vocab_size), device
        self._opened: dict[int, _Opened] = {}
        self._seen_SV: Tensor | None = None
        self._made_SV: Tensor | None = None

    def open(self, slot: int, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        """A new sequence in `slot`."""
        self._opened[slot] = _Opened(params, random.Random(params.seed))
        if not params.penalizes:
            return
        if self._seen_SV is None or self._made_SV is None:
            self._seen_SV = torch.zeros(self._size, dtype=torch.bool, device=self._device)
            self._made_SV = torch.zeros(self._size, device=self._device)
        self._seen_SV[slot] = False
        self._seen_SV[slot, send(prompt_ids, self._device)] = True
        self._made_SV[slot] = 0

    def choose(self, logits_BV: Tensor, slots: Sequence[int]) -> Tensor:
        """fp32 logits [B, V] of the sequences in `slots` to token ids, int64 [B];
        NO_TOKEN where the logits are not finite."""
        opened = [self._opened[slot] for slot in slots]
        penalized = [i for i, one in enumerate(opened) if one.params.penalizes]
        if penalized:
            logits_BV = self._penalize(logits_BV, penalized, slots, opened)
        sampled = [i for i, one in enumerate(opened) if one.params.temperature > 0]
        if len(sampled) == len(opened):
            best_B, ids_B = logits_BV.amax(-1), self._draw(logits_BV, opened)
        else:
            best_B, ids_B = logits_BV.max(-1)
            if sampled:
                rows = send(sampled, self._device)
                ids_B[rows] = self._draw(logits_BV[rows], [opened[i] for i in sampled])
        if penalized:
            self._count(ids_B, penalized, slots)
        return ids_B.masked_fill(~best_B.isfinite(), NO_TOKEN)

    def _draw(self, logits_BV: Tensor, opened: Sequence[_Opened]) -> Tensor:
        probs_BV = filtered_probs(logits_BV, [one.params for one in opened])
        numbers = [one.random.random() for one in opened]
        return draw(probs_BV, send(numbers, self._device, torch.float64))

    def _penalize(
        self,
        logits_BV: Tensor,
        rows: Sequence[int],
        slots: Sequence[int],
        opened: Sequence[_Opened],
    ) -> Tensor:
        assert self._seen_SV is not None
        assert self._made_SV is not None
        params = [opened[i].params for i in rows]
        at = send([slots[i] for i in rows], self._device)
        repetition = self._column(p.repetition_penalty for p in params)
        presence = self._column(p.presence_penalty for p in params)
        frequency = self._column(p.frequency_penalty for p in params)
        rows_B = send(rows, self._device)
        penalized, made = logits_BV[rows_B], self._made_SV[at]
        scaled = torch.where(penalized > 0, penalized / repetition, penalized * repetition)
        penalized = torch.where(self._seen_SV[at], scaled, penalized)
        penalized = penalized - frequency * made - presence * (made > 0)
        return logits_BV.index_copy(0, rows_B, penalized)

    def _count(self, ids_B: Tensor, rows: Sequence[int], slots: Sequence[int]) -> None:
        assert self._seen_SV is not None
        assert self._made_SV is not None
        at = send([slots[i] for i in rows], self._device)
        ids = ids_B[send(rows, self._device)]
        self._seen_SV[at, ids] = True
        self._made_SV[at, ids] += 1

    def _column(self, values: Iterable[float]) -> Tensor:
        return send(list(values), self._device)[:, None]
