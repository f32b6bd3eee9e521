"""Samples on the device without making the host wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.batch_settings import (
    COLUMNS,
    BatchSettings,
    UsedSettings,
    round_up,
    setting_numbers,
)
from minimind.inference.generation import Generation
from minimind.inference.pending_tokens import PendingTokens, pack
from minimind.inference.sampler import Sampler
from minimind.runtime.devices import send


class DeviceSampler(Sampler):
    """Chooses tokens by device operators alone, over tensors that stay at their addresses, so that
    a CUDA graph can hold them. The host sends sampling settings when the batch changes, and a
    sequence's random numbers, the same as on a CPU, when it begins."""

    def __init__(
        self, num_slots: int, vocab_size: int, device: torch.device, max_new_tokens: int
    ) -> None:
        super().__init__(num_slots, vocab_size, device)
        self._numbers = torch.zeros(len(COLUMNS) * round_up(num_slots), device=device)
        self._uniform_SN = torch.zeros(
            num_slots, max_new_tokens, dtype=torch.float64, device=device
        )
        self._num_drawn_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._placed: tuple[list[Generation], int, UsedSettings] | None = None
        """(sequences, number of rows, UsedSettings) of the settings that the device holds."""

    def open(self, generation: Generation) -> None:
        super().open(generation)
        self._num_drawn_S[generation.slot].zero_()
        params = generation.request.params
        if params.temperature > 0:
            numbers = [generation.random.random() for _ in range(params.max_new_tokens)]
            uniform_N = send(numbers, self._device, torch.float64)
            self._uniform_SN[generation.slot, : len(numbers)] = uniform_N

    def sample(self, logits_BV: Tensor, batch: Sequence[Generation]) -> PendingTokens:
        used = self.place(batch, len(batch))
        self.find_allowed(batch, used)
        packed, _ = self.sample_placed(logits_BV, used)
        return PendingTokens(packed, batch, used, range(len(batch)))

    def place(self, batch: Sequence[Generation], rows: int) -> UsedSettings:
        """Sends the sequences' settings to the device if it does not hold them. Rows beyond the
        sequences, up to `rows`, get the first sequence's."""
        if self._placed is None or self._placed[:2] != (batch, rows):
            params = [one.request.params for one in batch]
            slots = [one.slot for one in batch]
            numbers = setting_numbers(params, slots, self._vocab_size, rows)
            self._placed_numbers(rows).copy_(send(numbers, self._device))
            self._placed = [*batch], rows, UsedSettings.by(params, self._vocab_size, waits=False)
        return self._placed[2]

    def find_allowed(self, batch: Sequence[Generation], used: UsedSettings) -> None:
        """Sends to the device the tokens that each sequence's grammar allows next. All their tokens
        so far must have been accepted."""
        if self._masks is not None and used.grammar:
            self._masks.find([one.slot for one in batch])

    def sample_placed(self, logits_BV: Tensor, used: UsedSettings) -> tuple[Tensor, Tensor]:
        """Samples for the rows that `place` set, from their fp32 logits [B, V]. Gives the packed
        numbers for the host, and the token ids, int64 [B]. Waits for nothing."""
        numbers_CB = self._placed_numbers(len(logits_BV))
        settings = BatchSettings.over(numbers_CB, used)
        uniform_B = self._next_numbers(settings) if used.has_drawn else None
        ids_B = self._choose(logits_BV, settings, uniform_B)
        return pack(logits_BV, ids_B, settings), ids_B

    def _placed_numbers(self, batch: int) -> Tensor:
        return self._numbers[: len(COLUMNS) * batch].view(len(COLUMNS), batch)

    def _next_numbers(self, settings: BatchSettings) -> Tensor:
        slots_B = settings.drawn.whole_column("slot")
        at_B = self._num_drawn_S[slots_B]
        # Filler rows repeat the first row, and so write the same number.
        self._num_drawn_S[slots_B] = at_B + 1
        return self._uniform_SN[slots_B, at_B]
