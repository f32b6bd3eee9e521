"""Decodes on a GPU through CUDA graphs: one launch per step, where the host needs hundreds
otherwise."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minimind.inference.batch_settings import UsedSettings, round_up
from minimind.inference.device_sampler import DeviceSampler
from minimind.inference.generation import Generation
from minimind.inference.pending_tokens import PendingTokens
from minimind.model.cached_attention import GatherPlan, Piece
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer
from minimind.runtime.devices import send

logger = logging.getLogger(__name__)

MIN_LENGTH = 256
"""The least sequence length of a graph. Larger lengths, and batch sizes, are rounded up to powers
of two: that keeps graphs few and at most doubles the work."""

_Step = Callable[[], Tensor]
Choose = Callable[[], PendingTokens]
"""Chooses the tokens of a step whose forward has begun."""


class DecodeGraphs:
    """Runs steps of one new token per sequence, forward and sampling, as CUDA graphs: one graph for
    each rounded batch size, rounded length and set of sampling operators.

    A graph writes the next step's tokens and positions where it reads its own. So while the
    sequences stay the same, the host sends nothing and need not know the tokens. With a grammar,
    the allowed tokens depend on the earlier ones: then forward and sampling are separate graphs,
    and the host reads the earlier tokens while the forward runs. A step that cannot be captured
    (its forward waits for the device) runs without a graph, which is logged once.
    """

    def __init__(self, model: Transformer, cache: KVCache, sampler: DeviceSampler) -> None:
        self._model, self._cache, self._sampler = model, cache, sampler
        self._inputs = torch.zeros(
            3 * round_up(cache.num_slots), dtype=torch.int64, device=cache.device
        )
        self._next: object = None
        """The sequences and positions of the step that `_inputs` is ready for."""
        self._logits_BV: Tensor | None = None
        """The logits that the forward's graph hands to the sampling graph, for the largest
        batch."""
        self._steps: dict[tuple[object, ...], tuple[_Step, bool]] = {}
        """By kind of step: the function that runs it, and whether capturing it was tried."""
        self._pool: Any = None
        self._places = [parameter.data_ptr() for parameter in model.parameters()]
        self._has_warned = False

    def refresh(self) -> None:
        """Drops the graphs if the weights have moved, as they do each time ZeRO-3 gathers them. New
        values at the same addresses need nothing."""
        places = [parameter.data_ptr() for parameter in self._model.parameters()]
        if places != self._places:
            self._steps.clear()
            self._places = places

    def launch(
        self, batch: Sequence[Generation], pieces: Sequence[Piece], ids: Sequence[int]
    ) -> Choose | None:
        """Begins a step, and gives the function that chooses its tokens; None where a piece has
        more than one token. `ids` may be empty if the last launched step had the same sequences,
        one token earlier. Without a grammar the tokens are already being sampled."""
        if any(piece.count > 1 for piece in pieces):
            return None
        rows = round_up(len(batch))
        inputs_3B = self._inputs[: 3 * rows].view(3, rows)
        if self._next != (batch, [piece.start for piece in pieces]):
            inputs_3B.copy_(send(graph_inputs(ids, pieces, rows), self._cache.device))
        self._next = None
        used = self._sampler.place(batch, rows)
        longest = round_up(max(MIN_LENGTH, *(piece.end for piece in pieces)))
        length = min(longest, self._cache.capacity)

        def finish(packed: Tensor) -> PendingTokens:
            self._next = (batch, [piece.end for piece in pieces])
            return PendingTokens(packed, batch, used, range(rows))

        def choose() -> PendingTokens:
            self._sampler.find_allowed(batch, used)
            return finish(self._run((rows, used), self._choose, inputs_3B, used))

        if used.grammar:
            self._run((rows, length), self._forward, inputs_3B, length)
            return choose
        pending = finish(self._run((rows, length, used), self._step, inputs_3B, length, used))
        return lambda: pending

    def _run(self, key: tuple[object, ...], function: Callable[..., Tensor], *given: Any) -> Tensor:
        """Gives function(*given) through a graph. Calls with the same `key` have the same
        `given`."""
        if key not in self._steps:
            # Compilation and allocation at first use must not be captured.
            step = functools.partial(function, *given)
            self._steps[key] = step, False
            return step()
        step, was_tried = self._steps[key]
        if not was_tried:
            try:
                step = self._capture(step)
            except RuntimeError as error:
                level = logging.DEBUG if self._has_warned else logging.WARNING
                logger.log(level, "decoding without CUDA graphs: %s", error)
                self._has_warned = True
            self._steps[key] = step, True
        return step()

    def _step(self, inputs_3B: Tensor, length: int, used: UsedSettings) -> Tensor:
        logits_BV = decode_inputs(self._model, self._cache, inputs_3B, length)
        return self._sample(logits_BV, inputs_3B, used)

    def _forward(self, inputs_3B: Tensor, length: int) -> Tensor:
        logits_BV = decode_inputs(self._model, self._cache, inputs_3B, length)
        if self._logits_BV is None:
            self._logits_BV = logits_BV.new_empty(self._inputs.numel() // 3, logits_BV.shape[1])
        return self._logits_BV[: len(logits_BV)].copy_(logits_BV)

    def _choose(self, inputs_3B: Tensor, used: UsedSettings) -> Tensor:
        assert self._logits_BV is not None
        return self._sample(self._logits_BV[: inputs_3B.shape[1]], inputs_3B, used)

    def _sample(self, logits_BV: Tensor, inputs_3B: Tensor, used: UsedSettings) -> Tensor:
        packed, ids_B = self._sampler.sample_placed(logits_BV, used)
        inputs_3B[0].copy_(ids_B.clamp_min(0))
        inputs_3B[1].add_(1)
        return packed

    def _capture(self, step: _Step) -> _Step:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            packed = step()

        def replay() -> Tensor:
            graph.replay()
            return packed

        return replay


def graph_inputs(ids: Sequence[int], pieces: Sequence[Piece], batch: int) -> list[list[int]]:
    """Builds the rows ids, positions and slots, each of `batch` entries. Entries beyond the
    sequences repeat the first sequence: they write the same values to the cache, and their tokens
    are dropped."""
    assert len(ids) == len(pieces), "other sequences than before, whose tokens nobody knows"
    rows = [
        list(ids),
        [piece.start for piece in pieces],
        [piece.slot for piece in pieces],
    ]
    return [row + row[:1] * (batch - len(row)) for row in rows]


def decode_inputs(model: Transformer, cache: KVCache, inputs_3B: Tensor, length: int) -> Tensor:
    """Gives the fp32 logits [B, V] for `graph_inputs`. No sequence has more than `length`
    tokens."""
    ids_B, positions_B, slots_B = inputs_3B
    plan = GatherPlan.build(slots_B, positions_B, length, cache.num_kv_heads, cache.capacity)
    return model.decode(ids_B, cache, plan)
