"""Decoding on a GPU as CUDA graphs: one launch a step where the host would need hundreds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minimind.model.cached_attention import GatherPlan, Piece
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer

logger = logging.getLogger(__name__)

MIN_LENGTH = 256
"""Lengths are rounded up to powers of two from here on, batches from 1: few graphs, and at most
twice the work."""


class DecodeGraphs:
    """Graphs of `Transformer.decode` for one token each of many sequences, captured when first
    needed, one for each rounded batch size and length. Where a model cannot be captured (its
    forward waits for the device), that is logged once and every step runs without."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._graphs: dict[tuple[int, int], _DecodeGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._places = [parameter.data_ptr() for parameter in model.parameters()]
        self._failed = False

    def refresh(self) -> None:
        """Drops the graphs where the weights have moved, as ZeRO-3 gathers them anew each time; new
        values in the same places need nothing."""
        places = [parameter.data_ptr() for parameter in self._model.parameters()]
        if places != self._places:
            self._graphs.clear()
            self._places = places

    def decode(self, ids: Sequence[int], pieces: Sequence[Piece]) -> Tensor | None:
        """fp32 logits [B, V], overwritten by the next call; None where there is no graph for
        these."""
        if self._failed or any(piece.count > 1 for piece in pieces):
            return None
        batch = _round_up(len(pieces))
        longest = _round_up(max(MIN_LENGTH, *(piece.end for piece in pieces)))
        key = (batch, min(longest, self._cache.capacity))
        inputs_3B = graph_inputs(ids, pieces, batch)
        if key not in self._graphs:
            try:
                self._graphs[key] = _DecodeGraph(
                    self._model, self._cache, inputs_3B, key[1], self._pool
                )
            except RuntimeError as error:
                self._failed = True
                logger.warning("decoding without CUDA graphs: %s", error)
                return None
        return self._graphs[key].replay(inputs_3B)[: len(pieces)]


class _DecodeGraph:
    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        inputs_3B: Tensor,
        length: int,
        pool: Any,
    ) -> None:
        self._inputs_3B = inputs_3B.to(cache.device)
        # What compiles or allocates at first use must not be captured.
        stream = torch.cuda.Stream(cache.device)
        stream.wait_stream(torch.cuda.current_stream(cache.device))
        with torch.cuda.stream(stream):
            decode_inputs(model, cache, self._inputs_3B, length)
        torch.cuda.current_stream(cache.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits_BV = decode_inputs(model, cache, self._inputs_3B, length)

    def replay(self, inputs_3B: Tensor) -> Tensor:
        self._inputs_3B.copy_(inputs_3B.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._logits_BV


def graph_inputs(ids: Sequence[int], pieces: Sequence[Piece], batch: int) -> Tensor:
    """Ids, positions and slots, int64 [3, batch] on the CPU. What is missing to `batch` repeats the
    first sequence: it writes to the cache what that one writes, and its logits are dropped."""
    rows = [
        list(ids),
        [piece.start for piece in pieces],
        [piece.slot for piece in pieces],
    ]
    return torch.tensor([row + row[:1] * (batch - len(row)) for row in rows])


def decode_inputs(model: Transformer, cache: KVCache, inputs_3B: Tensor, length: int) -> Tensor:
    """fp32 logits [B, V] of `graph_inputs`, each of at most `length` tokens."""
    ids_B, positions_B, slots_B = inputs_3B
    plan = GatherPlan.build(slots_B, positions_B, length, cache.num_kv_heads, cache.capacity)
    return model.decode(ids_B, cache, plan)


def _round_up(number: int) -> int:
    return 1 << (number - 1).bit_length()
