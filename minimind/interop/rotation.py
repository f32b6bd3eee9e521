"""Reorders the rows that RoPE turns between the two ways of pairing a head's dimensions."""

from __future__ import annotations

from torch import Tensor


def to_pairs(rows: Tensor, head_size: int) -> Tensor:
    """Reorders the rows of q_proj or k_proj, or of their B, from halves (i turns with i + H/2), as
    models here have them, to neighbouring pairs (2i with 2i + 1)."""
    return rows.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).flatten(0, 2)


def to_halves(rows: Tensor, head_size: int) -> Tensor:
    """Reorders the rows from neighbouring pairs to halves: the inverse of `to_pairs`."""
    return rows.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2)
