"""Computes the gradients of all experts' weights, a product over each one's slots, in one
launch."""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .config import ProductTile, Tiles
from .launch import cdiv, device_of, launch

# A step looks its rows up before it loads them: twice the stages for as many loads.
_TILES = Tiles("expert_weight_grad", ProductTile(128, 128, 64, num_warps=8, stages=5))


def expert_weight_grad(
    left: Tensor,
    right: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    num_slots: int,
    *,
    left_by_token: bool,
) -> Tensor:
    """Gives leftᵀ · right over the slots of each expert: [E, L, R]. One of the two has a row for
    each token, the other a row for each slot in the order of experts."""
    num_experts, height, width = len(offsets_E1) - 1, left.shape[1], right.shape[1]
    grad_ELR = left.new_empty(num_experts, height, width)
    tile = device_of(left).product_tile(_TILES, left.dtype)
    launch(
        _weight_grad_kernel,
        (num_experts * cdiv(height, tile.rows) * cdiv(width, tile.columns),),
        tile.num_warps,
        left_ptr=left,
        right_ptr=right,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        grad_ptr=grad_ELR,
        left_stride=left.stride(0),
        right_stride=right.stride(0),
        HEIGHT=height,
        WIDTH=width,
        NUM_SLOTS=num_slots,
        LEFT_BY_TOKEN=left_by_token,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        STAGES=tile.stages,
    )
    return grad_ELR


@triton.jit
def _weight_grad_kernel(
    left_ptr,
    right_ptr,
    order_ptr,
    offsets_ptr,
    grad_ptr,
    left_stride,
    right_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    LEFT_BY_TOKEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Computes one tile of one expert's gradient, over all its slots; zeros where it has none."""
    column_tiles = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    row_tiles = tl.cdiv(HEIGHT, BLOCK_ROWS)
    tile = tl.program_id(0) % (row_tiles * column_tiles)
    expert = tl.program_id(0) // (row_tiles * column_tiles)
    rows = tile // column_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tile % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_height, in_width = rows < HEIGHT, columns < WIDTH
    stop = tl.load(offsets_ptr + expert + 1)
    grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    start = tl.load(offsets_ptr + expert)
    for first in tl.range(start, stop, BLOCK_DEPTH, num_stages=STAGES):
        slots = (first + tl.arange(0, BLOCK_DEPTH)).to(tl.int64)
        is_own = slots < stop
        tokens = (tl.load(order_ptr + slots, is_own, other=0) // NUM_SLOTS).to(tl.int64)
        left_rows = tokens if LEFT_BY_TOKEN else slots
        right_rows = slots if LEFT_BY_TOKEN else tokens
        left = tl.load(
            left_ptr + left_rows[None, :] * left_stride + rows[:, None],
            is_own[None, :] & in_height[:, None],
            other=0.0,
        )
        right = tl.load(
            right_ptr + right_rows[:, None] * right_stride + columns[None, :],
            is_own[:, None] & in_width[None, :],
            other=0.0,
        )
        grad = tl.dot(left, right, grad, input_precision="ieee")
    tl.store(
        grad_ptr
        + expert.to(tl.int64) * (HEIGHT * WIDTH)
        + rows[:, None] * WIDTH
        + columns[None, :],
        grad.to(grad_ptr.dtype.element_ty),
        in_height[:, None] & in_width[None, :],
    )
