"""Runs the forward of a scheduled batch, and chooses the next tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.decode_graphs import Choose, DecodeGraphs
from minimind.inference.device_sampler import DeviceSampler
from minimind.inference.generation import Generation
from minimind.inference.sampler import Sampler
from minimind.lora.loaded import LoadedAdapters
from minimind.model.cached_attention import Piece, SlotPlan
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer
from minimind.runtime.devices import send


class ModelRunner:
    """Owns the model, its cache and its sampler."""

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
        """True where the next step can be launched before the last one's tokens are read."""

    def launch(self, batch: Sequence[Generation], *, ahead: int = 0) -> Choose:
        """Begins the step that computes the scheduled tokens, and gives a function that chooses the
        next token of each sequence whose tokens are then all computed. The function must be called
        after all earlier tokens were accepted. `ahead` is how many of each sequence's tokens the
        host does not know yet."""
        adapter = batch[0].request.adapter
        if self._adapters is not None:
            self._adapters.switch_to(adapter)
        pieces = [
            Piece(slot=one.slot, start=one.num_computed + ahead, count=one.num_scheduled)
            for one in batch
        ]
        ids: list[int] = []
        for one, piece in zip(batch, pieces, strict=True):
            ids += one.ids[piece.start : piece.end]
        is_due = [piece.end >= len(one.ids) for one, piece in zip(batch, pieces, strict=True)]
        self.can_go_on = False
        # CUDA graphs compute the model without adapters.
        if self._graphs and adapter is None and all(is_due):
            choose = self._graphs.launch(batch, pieces, ids)
            if choose is not None:
                self.can_go_on = True
                return choose
        ends = itertools.accumulate(piece.count for piece in pieces)
        wanted = [end - 1 for end in itertools.compress(ends, is_due)]
        logits_RV = None
        if self._cpu_decode:
            num_switches = self._adapters.num_switches if self._adapters else 0
            logits_RV = self._cpu_decode.decode(ids, pieces, wanted, num_switches)
        if logits_RV is None:
            logits_RV = self._forward(pieces, ids, wanted)
        pending = self.sampler.sample(logits_RV, list(itertools.compress(batch, is_due)))
        return lambda: pending

    def refresh(self) -> None:
        """Reads the model's weights again after they changed."""
        for decode in (self._graphs, self._cpu_decode):
            if decode is not None:
                decode.refresh()

    def _forward(self, pieces: Sequence[Piece], ids: Sequence[int], wanted: list[int]) -> Tensor:
        """Gives fp32 logits [R, V] after the R tokens whose indices in `ids` are `wanted`."""
        plan = SlotPlan.build(pieces, self.cache.num_kv_heads, self.cache.capacity, self._device)
        rows = None
        if len(wanted) < len(ids):
            rows = send(wanted, self._device, torch.int64)
        return self._model.decode(send(ids, self._device), self.cache, plan, rows)


def computes_apart(device: torch.device) -> bool:
    """Tells whether the host can go on while `device` computes."""
    return device.type == "cuda"
