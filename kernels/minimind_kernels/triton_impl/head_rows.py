"""Reads and writes rows that are one head of one token, in two halves of the head."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_rows(tile, num_tokens, NUM: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Gives token, head and whether there is such a row: [rows, 1] each."""
    rows = (tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    return (rows // NUM).to(tl.int64), rows % NUM, rows < num_tokens * NUM


@triton.jit
def load_angles(tables, positions, mask, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Gives cos and sin [rows, half]; cos is NaN at a position outside the tables."""
    cos_ptr, sin_ptr, num_positions = tables
    is_position = (positions >= 0) & (positions < num_positions)
    offsets = positions * HALF + tl.arange(0, BLOCK_HALF)[None, :]
    mask = mask & is_position
    cos = tl.load(cos_ptr + offsets, mask, other=tl.where(is_position, 0.0, float("nan")))
    return cos, tl.load(sin_ptr + offsets, mask, other=0.0)


@triton.jit
def load_halves(ptrs, mask, HALF: tl.constexpr):
    """Gives both halves in fp32, from pointers to the first."""
    first = tl.load(ptrs, mask, other=0.0)
    second = tl.load(ptrs + HALF, mask, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def store_halves(ptrs, first, second, mask, HALF: tl.constexpr):
    """Stores both halves, cast, at pointers to the first."""
    tl.store(ptrs, first.to(ptrs.dtype.element_ty), mask)
    tl.store(ptrs + HALF, second.to(ptrs.dtype.element_ty), mask)


@triton.jit
def mean(first, second, HALF: tl.constexpr):
    """Gives the mean of each row: [rows, 1]."""
    return tl.sum(first + second, axis=1, keep_dims=True) / (2 * HALF)
