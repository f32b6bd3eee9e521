"""Lays products over each expert's slots out on a fixed grid.

Only the device knows how many slots an expert has. So the grid has as many row tiles as any
distribution can need: expert e, whose slots start at o_e, owns the tiles from ⌊o_e / rows⌋ + e up
to the first tile of expert e + 1. These are never fewer than it fills. A program finds its expert
by comparing offsets; one whose tile is not filled ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .config import ProductTile
from .launch import block, cdiv


def grid_over_slots(num_slots: int, num_experts: int, width: int, tile: ProductTile) -> tuple[int]:
    return ((num_slots // tile.rows + num_experts) * cdiv(width, tile.columns),)


def blocks_of(num_experts: int, tile: ProductTile) -> dict[str, int]:
    """Gives the constants that every kernel over such a grid takes."""
    return {
        "NUM_EXPERTS": num_experts,
        "BLOCK_EXPERTS": block(num_experts),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_DEPTH": tile.depth,
        "STAGES": tile.stages,
    }


@triton.jit
def find_tile(
    offsets_ptr,
    WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Gives (expert, first slot, number of slots, rows from the first slot on, columns) of this
    program; the number is at most 0 where the tile is not filled. Neighbouring programs share their
    rows. No scan is needed, which not every compiler for AMD gets right over several wavefronts
    (ROCm/triton#947)."""
    column_tiles = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    tile = tl.program_id(0) // column_tiles
    columns = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    starts = tl.load(offsets_ptr + experts, is_expert, other=0)
    is_begun = is_expert & (starts // BLOCK_ROWS + experts <= tile)
    expert = tl.sum(is_begun.to(tl.int32), axis=0) - 1
    start = tl.load(offsets_ptr + expert)
    first = start + (tile - start // BLOCK_ROWS - expert) * BLOCK_ROWS
    count = tl.load(offsets_ptr + expert + 1) - first
    # Scalars have 64 bits; values of which each thread has many have 32.
    return expert.to(tl.int64), first.to(tl.int64), count, tl.arange(0, BLOCK_ROWS), columns
