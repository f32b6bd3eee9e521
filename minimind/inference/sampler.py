"""Chooses the next tokens of a whole batch, each sequence with its own settings and random
numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.batch_settings import BatchSettings, RowGroup
from minimind.inference.filters import draw, filtered_probs
from minimind.inference.generation import Generation
from minimind.inference.grammar_masks import GrammarMasks
from minimind.inference.pending_tokens import PendingTokens, pack
from minimind.inference.sampling import SamplingParams
from minimind.runtime.devices import send

NO_TOKEN = -1


class Sampler:
    """Chooses tokens where the host may wait for the device. The counts for penalties, the biases
    and the tokens that grammars allow are kept by slot, and allocated when a request first needs
    them."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._num_slots, self._vocab_size, self._device = num_slots, vocab_size, device
        self._seen_SV: Tensor | None = None
        self._made_SV: Tensor | None = None
        self._bias_SV: Tensor | None = None
        self._masks: GrammarMasks | None = None
        self._last: tuple[list[Generation], BatchSettings] | None = None
        """The sequences and the settings of the last batch, reused while the sequences stay the
        same."""

    def open(self, generation: Generation) -> None:
        """Begins a new sequence in its slot, before its first token."""
        slot, params = generation.slot, generation.request.params
        if params.grammar is not None and self._masks is None:
            self._masks = GrammarMasks(self._num_slots, self._vocab_size, self._device)
        if self._masks is not None:
            self._masks.open(slot, params.grammar)
        # On a GPU a slot's bias is also read for rows that have none, so it must be cleared.
        if params.logit_bias or self._bias_SV is not None:
            self._open_bias(slot, params)
        if params.penalizes:
            self._open_penalties(slot, generation.request.prompt_ids)

    def accept(self, generation: Generation, token: int) -> bool:
        """Advances the sequence's grammar by `token`; tells whether the grammar has ended. Raises
        GrammarFailure."""
        return self._masks is not None and self._masks.accept(generation.slot, token)

    def _open_bias(self, slot: int, params: SamplingParams) -> None:
        if self._bias_SV is None:
            self._bias_SV = torch.zeros(self._num_slots, self._vocab_size, device=self._device)
        self._bias_SV[slot].zero_()
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            ids_N, bias_N = send(ids, self._device), send(biases, self._device, torch.float32)
            self._bias_SV[slot].index_copy_(0, ids_N, bias_N)

    def _open_penalties(self, slot: int, prompt_ids: Sequence[int]) -> None:
        if self._seen_SV is None or self._made_SV is None:
            size = (self._num_slots, self._vocab_size)
            self._seen_SV = torch.zeros(size, dtype=torch.bool, device=self._device)
            self._made_SV = torch.zeros(size, device=self._device)
        # Assigning a Python number to part of a tensor would make the host wait for a GPU, since it
        # is copied there.
        self._seen_SV[slot].zero_().index_fill_(0, send(prompt_ids, self._device), True)
        self._made_SV[slot].zero_()

    def sample(self, logits_BV: Tensor, batch: Sequence[Generation]) -> PendingTokens:
        """Chooses the next token of each sequence from its fp32 logits [B, V]."""
        if self._last is None or self._last[0] != batch:
            slots, params = [one.slot for one in batch], [one.request.params for one in batch]
            settings = BatchSettings.build(params, slots, self._vocab_size, self._device)
            self._last = [*batch], settings
        settings, uniform_R = self._last[1], None
        if self._masks is not None and settings.used.grammar:
            self._masks.find([one.slot for one in batch])
        if settings.used.has_drawn:
            numbers = [one.random.random() for one in batch if one.request.params.temperature > 0]
            uniform_R = send(numbers, self._device, torch.float64)
        ids_B = self._choose(logits_BV, settings, uniform_R)
        return PendingTokens(pack(logits_BV, ids_B, settings), batch, settings.used)

    def _choose(
        self, logits_BV: Tensor, settings: BatchSettings, uniform_R: Tensor | None
    ) -> Tensor:
        """Gives the chosen token ids, int64 [B]. `uniform_R` holds a random number for each row of
        `settings.drawn`."""
        used, drawn = settings.used, settings.drawn
        if used.penalties:
            logits_BV = self._penalize(logits_BV, settings.penalized)
        if used.bias:
            logits_BV = self._add_bias(logits_BV, settings.biased)
        if used.grammar:
            logits_BV = self._hold(logits_BV, settings.held)
        if uniform_R is None:
            best_B, ids_B = logits_BV.max(-1)
        else:
            probs_RV = filtered_probs(drawn.take(logits_BV), drawn, used)
            drawn_R = draw(probs_RV, uniform_R)
            if used.has_greedy:
                best_B, ids_B = logits_BV.max(-1)
                ids_B = drawn.put(ids_B, drawn_R)
            else:
                best_B, ids_B = logits_BV.amax(-1), drawn_R
        if settings.source_B is not None:
            best_B, ids_B = best_B[settings.source_B], ids_B[settings.source_B]
        if used.penalties:
            self._count(settings.penalized.take(ids_B), settings.penalized)
        return ids_B.masked_fill(~best_B.isfinite(), NO_TOKEN)

    def _penalize(self, logits_BV: Tensor, rows: RowGroup) -> Tensor:
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

    def _add_bias(self, logits_BV: Tensor, rows: RowGroup) -> Tensor:
        assert self._bias_SV is not None
        bias_RV = self._bias_SV[rows.whole_column("slot")]
        return rows.put(logits_BV, rows.take(logits_BV) + bias_RV)

    def _hold(self, logits_BV: Tensor, rows: RowGroup) -> Tensor:
        assert self._masks is not None
        held_RV = self._masks.apply(rows.take(logits_BV), rows.whole_column("slot"))
        return rows.put(logits_BV, held_RV)

    def _count(self, ids_R: Tensor, rows: RowGroup) -> None:
        assert self._seen_SV is not None
        assert self._made_SV is not None
        slots_R = rows.whole_column("slot")
        self._seen_SV[slots_R, ids_R] = torch.ones_like(ids_R, dtype=torch.bool)
        self._made_SV[slots_R, ids_R] += 1
