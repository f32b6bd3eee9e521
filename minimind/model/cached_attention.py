"""Computes attention of new tokens over slots of a cache: the next tokens of many sequences and
pieces of prompts, in one forward.

The next tokens of neighbouring slots of similar length are one product over a view of the cache;
each piece of a prompt is a product of its own. No sequence sees another's tokens, so results do not
depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.runtime.devices import send

MAX_PADDING = 256
"""The most padding tokens that one product over neighbouring slots may read: about as much work as
another call costs on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Describes `count` new tokens of one sequence, from position `start` on, in `slot` of the
    cache."""

    slot: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Run:
    """Describes one new token in each of `num_slots` neighbouring slots: rows of the batch from
    `first_row` on, slots from `first_slot` on."""

    first_row: int
    first_slot: int
    num_slots: int
    length: int
    """The tokens of the longest of these sequences, the new one included."""
    bias_B11T: Tensor | None
    """fp32: 0 where a slot holds a token, -inf after its end; None where all are equally long."""


class CachePlan(Protocol):
    """Says where the new tokens of a forward are stored, and which tokens each of them sees."""

    @property
    def positions_M(self) -> Tensor: ...
    @property
    def places_MK(self) -> Tensor:
        """int64: the index of each head of each new token in a layer of the cache laid flat as
        [slots · K · capacity]."""
        ...

    def attend(self, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
        """Computes softmax(q·kᵀ/√H)·v for each new token over its own slot, up to the token itself:
        [M, N, H]."""
        ...


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Plans pieces of any length on the host. It reads views of the cache; only runs have
    padding."""

    positions_M: Tensor
    places_MK: Tensor
    runs: tuple[Run, ...]
    pieces: tuple[tuple[int, Piece], ...]
    """(first row, piece) of each piece that has more than one token."""

    @classmethod
    def build(
        cls, pieces: Sequence[Piece], num_kv_heads: int, capacity: int, device: torch.device
    ) -> SlotPlan:
        """Builds the plan. Pieces of one token must come first, ordered by slot."""
        assert all(piece.end <= capacity for piece in pieces), "the caller sizes the cache"
        num_single = sum(piece.count == 1 for piece in pieces)
        singles, others = pieces[:num_single], pieces[num_single:]
        positions, slots = [], []
        for piece in pieces:
            positions += range(piece.start, piece.end)
            slots += [piece.slot] * piece.count
        positions_M, slots_M = send([positions, slots], device)
        places_MK = _places(slots_M, positions_M, num_kv_heads, capacity)
        first_rows, row = [], num_single
        for piece in others:
            first_rows.append(row)
            row += piece.count
        runs = tuple(_build_runs(singles, device))
        return cls(positions_M, places_MK, runs, tuple(zip(first_rows, others, strict=True)))

    def attend(self, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
        outs = [_attend_run(run, q_MNH, keys_SKCH, values_SKCH) for run in self.runs]
        for first_row, piece in self.pieces:
            q = q_MNH[first_row : first_row + piece.count]
            outs.append(_attend_piece(piece, q, keys_SKCH, values_SKCH))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """Plans one new token for each slot named, on the device alone. The host knows only their
    number and a bound on their lengths, so a CUDA graph can hold the plan."""

    positions_M: Tensor
    places_MK: Tensor
    slots_M: Tensor
    bias_M11T: Tensor

    @classmethod
    def build(
        cls, slots_M: Tensor, positions_M: Tensor, length: int, num_kv_heads: int, capacity: int
    ) -> GatherPlan:
        """Builds the plan; every position must be below `length`."""
        behind_MT = torch.arange(length, device=slots_M.device) > positions_M[:, None]
        bias_MT = torch.zeros(behind_MT.shape, device=slots_M.device)
        bias_M11T = bias_MT.masked_fill_(behind_MT, float("-inf"))[:, None, None]
        places_MK = _places(slots_M, positions_M, num_kv_heads, capacity)
        return cls(positions_M, places_MK, slots_M, bias_M11T)

    def attend(self, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
        length = self.bias_M11T.shape[-1]
        keys_MKTH, values_MKTH = (
            x[:, :, :length].index_select(0, self.slots_M) for x in (keys_SKCH, values_SKCH)
        )
        return _attend_grouped(q_MNH, keys_MKTH, values_MKTH, self.bias_M11T)


def _places(slots_M: Tensor, positions_M: Tensor, num_kv_heads: int, capacity: int) -> Tensor:
    heads_K = torch.arange(num_kv_heads, device=slots_M.device)
    return (slots_M[:, None] * num_kv_heads + heads_K) * capacity + positions_M[:, None]


def _build_runs(singles: Sequence[Piece], device: torch.device) -> list[Run]:
    runs: list[Run] = []
    row = 0
    while row < len(singles):
        same = [singles[row]]
        longest = total = singles[row].end
        for piece in singles[row + 1 :]:
            longest, total = max(longest, piece.end), total + piece.end
            padding = (len(same) + 1) * longest - total
            if piece.slot != same[-1].slot + 1 or padding > MAX_PADDING:
                break
            same.append(piece)
        length = max(piece.end for piece in same)
        runs.append(Run(row, same[0].slot, len(same), length, _end_bias(same, length, device)))
        row += len(same)
    return runs


def _end_bias(pieces: Sequence[Piece], length: int, device: torch.device) -> Tensor | None:
    if all(piece.end == length for piece in pieces):
        return None
    ends = send([piece.end for piece in pieces], device)
    bias = torch.zeros(len(pieces), 1, 1, length, device=device)
    behind = torch.arange(length, device=device) >= ends[:, None]
    return bias.masked_fill_(behind[:, None, None], float("-inf"))


def _attend_run(run: Run, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
    slots = slice(run.first_slot, run.first_slot + run.num_slots)
    return _attend_grouped(
        q_MNH[run.first_row : run.first_row + run.num_slots],
        keys_SKCH[slots, :, : run.length],
        values_SKCH[slots, :, : run.length],
        run.bias_B11T,
    )


def _attend_grouped(
    q_BNH: Tensor, keys_BKTH: Tensor, values_BKTH: Tensor, bias_B11T: Tensor | None
) -> Tensor:
    """Computes attention for one query token per sequence. Query heads that share a key head are
    rows of one product, so keys are never repeated."""
    _, heads, size = q_BNH.shape
    num_kv = keys_BKTH.shape[1]
    bias = None if bias_B11T is None else bias_B11T.to(q_BNH.dtype)
    out_BKGH = F.scaled_dot_product_attention(
        q_BNH.view(-1, num_kv, heads // num_kv, size), keys_BKTH, values_BKTH, attn_mask=bias
    )
    return out_BKGH.reshape(-1, heads, size)


def _attend_piece(piece: Piece, q_TNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
    mask = None
    if piece.start:
        mask = torch.ones(piece.count, piece.end, dtype=torch.bool, device=q_TNH.device)
        mask = mask.tril_(piece.start)
    out_1NTH = F.scaled_dot_product_attention(
        q_TNH.transpose(0, 1)[None],
        keys_SKCH[piece.slot : piece.slot + 1, :, : piece.end],
        values_SKCH[piece.slot : piece.slot + 1, :, : piece.end],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return out_1NTH[0].transpose(0, 1)
