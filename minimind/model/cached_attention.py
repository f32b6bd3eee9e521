"""Attention of new tokens over slots of a cache: many sequences' next tokens beside pieces of
prompts, in one forward.

Neighbouring slots of like length are one product over a view of the cache; a piece of a prompt is
one of its own. No sequence ever sees another's tokens, so nothing depends on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PADDING = 256
"""Tokens a run of slots may read in vain: about what another call would cost on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`count` new tokens of one sequence, from position `start` on, for `slot` of the cache."""

    slot: int
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Run:
    """Next tokens of neighbouring slots, one each: rows `first_row` on of the batch."""

    first_row: int
    first_slot: int
    num_slots: int
    length: int
    """Tokens of the longest, the new one included."""
    bias_B11T: Tensor | None
    """0 where a slot holds a token and -inf behind its end; None where all are equally long."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Where the tokens of one forward stand and what each may see. The rows of `pieces` follow
    one another in the batch."""

    positions_M: Tensor
    places_MK: Tensor
    """int64: where each head of each new token goes (see CacheLayer.store)."""
    runs: tuple[Run, ...]
    pieces: tuple[tuple[int, Piece], ...]
    """(first row, piece) of those of more than one token."""

    @classmethod
    def build(
        cls, pieces: Sequence[Piece], num_kv_heads: int, capacity: int, device: torch.device
    ) -> CachePlan:
        """Pieces of one token come first, ordered by slot."""
        assert all(piece.end <= capacity for piece in pieces), "the caller sizes the cache"
        num_single = sum(piece.count == 1 for piece in pieces)
        singles, others = pieces[:num_single], pieces[num_single:]
        positions, slots = [], []
        for piece in pieces:
            positions += range(piece.start, piece.end)
            slots += [piece.slot] * piece.count
        positions_M, slots_M = torch.tensor([positions, slots], device=device)
        heads_K = torch.arange(num_kv_heads, device=device)
        places_MK = (slots_M[:, None] * num_kv_heads + heads_K) * capacity + positions_M[:, None]
        first_rows, row = [], num_single
        for piece in others:
            first_rows.append(row)
            row += piece.count
        runs = tuple(_build_runs(singles, device))
        return cls(positions_M, places_MK, runs, tuple(zip(first_rows, others, strict=True)))

    def attend(self, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
        """softmax(q·kᵀ/√H)·v over each token's own slot, up to itself: [M, N, H]."""
        outs = [_attend_run(run, q_MNH, keys_SKCH, values_SKCH) for run in self.runs]
        for first_row, piece in self.pieces:
            q = q_MNH[first_row : first_row + piece.count]
            outs.append(_attend_piece(piece, q, keys_SKCH, values_SKCH))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


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
    ends = torch.tensor([piece.end for piece in pieces], device=device)
    bias = torch.zeros(len(pieces), 1, 1, length, device=device)
    behind = torch.arange(length, device=device) >= ends[:, None]
    return bias.masked_fill_(behind[:, None, None], float("-inf"))


def _attend_run(run: Run, q_MNH: Tensor, keys_SKCH: Tensor, values_SKCH: Tensor) -> Tensor:
    """The query heads of one key head are the rows of its product, so keys are never repeated."""
    slots = slice(run.first_slot, run.first_slot + run.num_slots)
    q_BNH = q_MNH[run.first_row : run.first_row + run.num_slots]
    _, heads, size = q_BNH.shape
    num_kv = keys_SKCH.shape[1]
    bias = run.bias_B11T
    out_BKGH = F.scaled_dot_product_attention(
        q_BNH.view(-1, num_kv, heads // num_kv, size),
        keys_SKCH[slots, :, : run.length],
        values_SKCH[slots, :, : run.length],
        attn_mask=None if bias is None else bias.to(q_BNH.dtype),
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
