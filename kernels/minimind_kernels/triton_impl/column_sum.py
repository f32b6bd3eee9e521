"""Computes the second stage of a weight's gradient: adds the programs' partial sums in a fixed
order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import cdiv, device_of, launch

_TILES = Tiles("column_sum", Tile(elements=16384, num_warps=8))
_BLOCK_COLUMNS = 16


def column_sum(partial_PD: Tensor, dtype: torch.dtype) -> Tensor:
    """Gives the sum over programs of fp32 partial sums, cast once."""
    num_rows, width = partial_PD.shape
    out_D = partial_PD.new_empty((width,), dtype=dtype)
    tile = device_of(partial_PD).tile(_TILES)
    launch(
        _column_sum_kernel,
        (cdiv(width, _BLOCK_COLUMNS),),
        tile.num_warps,
        partial_ptr=partial_PD,
        out_ptr=out_D,
        num_rows=num_rows,
        WIDTH=width,
        BLOCK_ROWS=tile.elements // _BLOCK_COLUMNS,
        BLOCK_COLUMNS=_BLOCK_COLUMNS,
    )
    return out_D


@triton.jit(do_not_specialize=["num_rows"])
def _column_sum_kernel(
    partial_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in range(0, num_rows, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
        sums += tl.load(partial_ptr + rows[:, None] * WIDTH + columns[None, :], mask, other=0.0)
    total = tl.sum(sums, axis=0)
    tl.store(out_ptr + columns, total.to(out_ptr.dtype.element_ty), columns < WIDTH)
