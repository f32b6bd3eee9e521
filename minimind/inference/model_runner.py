"""One forward of what the scheduler chose, and the tokens that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.decode_graphs import DecodeGraphs
from minimind.inference.logprobs import TokenLogprob, read_tokens
from minimind.inference.sampler import Sampler
from minimind.inference.scheduler import Scheduled
from minimind.model.cached_attention import SlotPlan
from minimind.model.kv_cache import KVCache
from minimind.model.loaded_adapters import LoadedAdapters
from minimind.model.transformer import Transformer
from minimind.runtime.devices import send


class ModelRunner:
    """The model with its cache and sampler."""

    def __init__(
        self,
        model: Transformer,
        num_slots: int,
        capacity: int,
        *,
        adapters: LoadedAdapters | None,
        fast_decode: bool,
    ) -> None:
        weight = model.lm_head.weight
        self._model, self._adapters, self._device = model, adapters, weight.device
        self.cache = KVCache(
            model.config, num_slots, capacity, dtype=weight.dtype, device=weight.device
        )
        self.sampler = Sampler(num_slots, model.config.vocab_size, weight.device)
        self._fast: DecodeGraphs | CpuDecode | None = None
        if fast_decode and weight.is_cuda:
            self._fast = DecodeGraphs(model, self.cache)
        elif fast_decode and CpuDecode.can_run(model):
            self._fast = CpuDecode(model, self.cache)

    def run(
        self, batch: Sequence[Scheduled], adapter: str | None
    ) -> tuple[list[int], list[TokenLogprob | None]]:
        """The next token of each sequence that the batch completes, NO_TOKEN where there is none,
        and its log-probability where the request asks for it."""
        if self._adapters is not None:
            active = {} if adapter is None else {adapter: 1.0}
            if self._adapters.active != active:
                self._adapters.activate(active)
        logits_RV = self._forward(batch, adapter)
        completed = [one for one in batch if one.completes]
        chosen_R = self.sampler.choose(logits_RV, [one.piece.slot for one in completed])
        return read_tokens(
            logits_RV, chosen_R, [one.generation.request.params for one in completed]
        )

    def refresh(self) -> None:
        """Comes after the model's weights have changed."""
        if self._fast is not None:
            self._fast.refresh()

    def _forward(self, batch: Sequence[Scheduled], adapter: str | None) -> Tensor:
        """fp32 logits [R, V] of the sequences completed."""
        pieces = [one.piece for one in batch]
        ids: list[int] = []
        for one in batch:
            ids += one.generation.ids[one.piece.start : one.piece.end]
        # Both know the model as it is without adapters.
        if self._fast and adapter is None and all(one.completes for one in batch):
            logits_BV = self._fast.decode(ids, pieces)
            if logits_BV is not None:
                return logits_BV
        plan = SlotPlan.build(pieces, self.cache.num_kv_heads, self.cache.capacity, self._device)
        ends = itertools.accumulate(piece.count for piece in pieces)
        wanted = [end - 1 for end, one in zip(ends, batch, strict=True) if one.completes]
        rows = None
        if len(wanted) < len(ids):
            rows = send(wanted, self._device, torch.int64)
        return self._model.decode(send(ids, self._device), self.cache, plan, rows)
