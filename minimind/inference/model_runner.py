"""One forward of what the scheduler chose, and the tokens that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.decode_graphs import Choose, DecodeGraphs
from minimind.inference.device_sampler import DeviceSampler
from minimind.inference.sampler import Sampler
from minimind.inference.scheduler import Scheduled
from minimind.lora.loaded import LoadedAdapters
from minimind.model.cached_attention import SlotPlan
from minimind.model.kv_cache import KVCache
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
        self._cpu_decode: CpuDecode | None = None
        self._graphs: DecodeGraphs | None = None
        vocab_size = model.config.vocab_size
        self.sampler: Sampler
        if computes_apart(weight.device):
            sampler = DeviceSampler(num_slots, vocab_size, weight.device, capacity)
            self.sampler = sampler
            if fast_decode:
                self._graphs = DecodeGraphs(model, self.cache, sampler)
        else:
            self.sampler = Sampler(num_slots, vocab_size, weight.device)
            if fast_decode and CpuDecode.can_run(model):
                self._cpu_decode = CpuDecode(model, self.cache)
        self.can_go_on = False
        """Whether the step after the last one can be launched before that one's tokens are read."""

    def launch(self, batch: Sequence[Scheduled], adapter: str | None) -> Choose:
        """Begins the step that gives the next token of each sequence that the batch completes,
        NO_TOKEN where there is none, and its log-probability where the request asks for it. The
        tokens are chosen by calling what this gives, when all that came before are accepted."""
        if self._adapters is not None:
            self._adapters.switch_to(adapter)
        pieces = [one.piece for one in batch]
        ids: list[int] = []
        for one in batch:
            ids += one.generation.ids[one.piece.start : one.piece.end]
        # Graphs and C++ know the model as it is without adapters.
        is_plain = adapter is None and all(one.completes for one in batch)
        self.can_go_on = False
        if self._graphs and is_plain:
            choose = self._graphs.launch(ids, pieces)
            if choose is not None:
                self.can_go_on = True
                return choose
        logits_RV = self._cpu_decode.decode(ids, pieces) if self._cpu_decode and is_plain else None
        if logits_RV is None:
            logits_RV = self._forward(batch, ids)
        completed = [one.piece.slot for one in batch if one.completes]
        pending = self.sampler.sample(logits_RV, completed)
        return lambda: pending

    def refresh(self) -> None:
        """Comes after the model's weights have changed."""
        for decode in (self._graphs, self._cpu_decode):
            if decode is not None:
                decode.refresh()

    def _forward(self, batch: Sequence[Scheduled], ids: Sequence[int]) -> Tensor:
        """fp32 logits [R, V] of the sequences completed."""
        pieces = [one.piece for one in batch]
        plan = SlotPlan.build(pieces, self.cache.num_kv_heads, self.cache.capacity, self._device)
        ends = itertools.accumulate(piece.count for piece in pieces)
        wanted = [end - 1 for end, one in zip(ends, batch, strict=True) if one.completes]
        rows = None
        if len(wanted) < len(ids):
            rows = send(wanted, self._device, torch.int64)
        return self._model.decode(send(ids, self._device), self.cache, plan, rows)


def computes_apart(device: torch.device) -> bool:
    """Whether the host goes on while `device` computes."""
    return device.type == "cuda"
