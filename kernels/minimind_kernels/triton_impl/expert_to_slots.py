"""Multiplies each slot's row with a matrix of its expert and sums over the slots of each token.

Each product is stored at its slot in the order of tokens, and a second kernel adds a token's slots
in their order: no atomics, so every run gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .config import ProductTile, ProductTiles, Tile, Tiles
from .expert_tiles import blocks_of, find_tile, grid_over_slots
from .launch import block, cdiv, device_of, launch

_TILES = ProductTiles(
    "expert_to_slots",
    ProductTile(128, 128, 64, num_warps=8, stages=3),
    candidates=(ProductTile(128, 256, 64, num_warps=8, stages=3),),
)
_SUM_TILES = Tiles("expert_slot_sum", Tile(elements=2048, num_warps=4))
_SUM_COLUMNS = 128


def multiply_and_sum_slots(
    rows_PK: Tensor,
    weight: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    num_slots: int,
    *,
    transposed: bool,
    weights_MS: Tensor | None = None,
    grad_weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Multiplies each sorted row with its expert's weight [E, K, D], or [E, D, K] if `transposed`,
    and with the slot's own weight, and sums over each token's slots: [M, D].

    `grad_weights` is (partial_NP, grad_weights_MS): the N partial sums of each sorted slot are
    added, and the result is written to the slot's place in the order of tokens.
    """
    num_experts = weight.shape[0]
    depth, width = weight.shape[:0:-1] if transposed else weight.shape[1:]
    out_PD = rows_PK.new_empty(len(rows_PK), width)
    tile = device_of(rows_PK).tile(_TILES, rows_PK.dtype)
    partial_NP, grad_weights_MS = grad_weights or (out_PD[:0], out_PD)
    launch(
        _to_slots_kernel,
        grid_over_slots(len(rows_PK), num_experts, width, tile),
        tile.num_warps,
        left_ptr=rows_PK,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        weight_ptr=weight.contiguous(),
        weights_ptr=out_PD if weights_MS is None else weights_MS.contiguous(),
        partial_ptr=partial_NP,
        grad_weights_ptr=grad_weights_MS,
        out_ptr=out_PD,
        num_rows=len(rows_PK),
        DEPTH=depth,
        WIDTH=width,
        DEPTH_STRIDE=1 if transposed else width,
        COLUMN_STRIDE=depth if transposed else 1,
        HAS_WEIGHTS=weights_MS is not None,
        NUM_PARTS=len(partial_NP),
        BLOCK_PARTS=block(len(partial_NP)),
        **blocks_of(num_experts, tile),
    )
    return out_PD if num_slots == 1 else _sum_slots(out_PD, num_slots)


def _sum_slots(y_PD: Tensor, num_slots: int) -> Tensor:
    num_tokens, width = len(y_PD) // num_slots, y_PD.shape[1]
    sum_MD = y_PD.new_empty(num_tokens, width)
    tile = device_of(y_PD).tile(_SUM_TILES)
    block_columns = min(block(width), _SUM_COLUMNS)
    block_rows = tile.elements // block_columns
    launch(
        _sum_slots_kernel,
        (cdiv(num_tokens, block_rows) * cdiv(width, block_columns),),
        tile.num_warps,
        y_ptr=y_PD,
        sum_ptr=sum_MD,
        num_tokens=num_tokens,
        WIDTH=width,
        NUM_SLOTS=num_slots,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
    )
    return sum_MD


@triton.jit
def _to_slots_kernel(
    left_ptr,
    order_ptr,
    offsets_ptr,
    weight_ptr,
    weights_ptr,
    partial_ptr,
    grad_weights_ptr,
    out_ptr,
    num_rows,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiplies a tile's rows with their expert's weight, and stores each at its token's place."""
    expert, first_slot, count, rows, columns = find_tile(
        offsets_ptr, WIDTH, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if count <= 0:
        return
    is_own = rows < count
    in_width = columns < WIDTH
    left_ptr += first_slot * DEPTH
    weight_ptr += expert * (DEPTH * WIDTH)
    out = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in tl.range(0, DEPTH, BLOCK_DEPTH, num_stages=STAGES):
        depth = first + tl.arange(0, BLOCK_DEPTH)
        in_depth = depth < DEPTH
        left = tl.load(
            left_ptr + rows[:, None] * DEPTH + depth[None, :],
            is_own[:, None] & in_depth[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + depth[:, None] * DEPTH_STRIDE + columns[None, :] * COLUMN_STRIDE,
            in_depth[:, None] & in_width[None, :],
            other=0.0,
        )
        out = tl.dot(left, weight, out, input_precision="ieee")
    targets = tl.load(order_ptr + first_slot + rows, is_own, other=0).to(tl.int64)
    if HAS_WEIGHTS:
        out *= tl.load(weights_ptr + targets, is_own, other=0.0)[:, None]
    tl.store(
        out_ptr + targets[:, None] * WIDTH + columns[None, :],
        out.to(out_ptr.dtype.element_ty),
        is_own[:, None] & in_width[None, :],
    )
    # A constant, then a number of this program.
    if NUM_PARTS > 0:  # noqa: SIM102
        if tl.program_id(0) % tl.cdiv(WIDTH, BLOCK_COLUMNS) == 0:
            parts = tl.arange(0, BLOCK_PARTS)[:, None]
            partial = tl.load(
                partial_ptr + parts.to(tl.int64) * num_rows + first_slot + rows[None, :],
                (parts < NUM_PARTS) & is_own[None, :],
                other=0.0,
            )
            tl.store(grad_weights_ptr + targets, tl.sum(partial, axis=0), is_own)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_slots_kernel(
    y_ptr,
    sum_ptr,
    num_tokens,
    WIDTH: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Adds each token's slots in their order, in fp32."""
    column_tiles = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    rows = tl.program_id(0) // column_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_tokens)[:, None] & (columns < WIDTH)[None, :]
    rows = rows.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for slot in tl.static_range(NUM_SLOTS):
        offsets = (rows * NUM_SLOTS + slot) * WIDTH + columns[None, :]
        total += tl.load(y_ptr + offsets, mask, other=0.0).to(tl.float32)
    tl.store(sum_ptr + rows * WIDTH + columns[None, :], total.to(sum_ptr.dtype.element_ty), mask)
