"""Computes the gradients of all experts' weights: two products over the slots of each expert.

They are one launch, so that the last tiles of the first do not leave multiprocessors idle.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .config import ProductTile, ProductTiles
from .launch import cdiv, device_of, launch

# A step looks its rows up before it loads them: twice the stages for as many loads.
_TILES = ProductTiles("expert_weight_grad", ProductTile(128, 128, 64, num_warps=8, stages=5))


def expert_weight_grads(
    grad_gate_up_PG: Tensor,
    x_MD: Tensor,
    grad_out_MD: Tensor,
    hidden_PF: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    num_slots: int,
) -> tuple[Tensor, Tensor]:
    """Gives, over the slots of each expert, grad_gate_upᵀ · x [E, 2F, D] and grad_outᵀ · hidden [E,
    D, F]. grad_gate_up and hidden have a row for each slot, sorted by expert; x and grad_out have
    one for each token."""
    num_experts, hidden, ffn = len(offsets_E1) - 1, x_MD.shape[1], hidden_PF.shape[1]
    grad_gate_up_EGD = x_MD.new_empty(num_experts, 2 * ffn, hidden)
    grad_down_EDF = x_MD.new_empty(num_experts, hidden, ffn)
    tile = device_of(x_MD).tile(_TILES, x_MD.dtype)
    row_tiles = cdiv(2 * ffn, tile.rows) + cdiv(ffn, tile.rows)
    launch(
        _weight_grad_kernel,
        (num_experts * row_tiles * cdiv(hidden, tile.columns),),
        tile.num_warps,
        grad_gate_up_ptr=grad_gate_up_PG,
        x_ptr=x_MD,
        grad_out_ptr=grad_out_MD,
        hidden_ptr=hidden_PF,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        grad_gate_up_weight_ptr=grad_gate_up_EGD,
        grad_down_ptr=grad_down_EDF,
        x_stride=x_MD.stride(0),
        grad_out_stride=grad_out_MD.stride(0),
        WIDTH=hidden,
        FFN=ffn,
        NUM_SLOTS=num_slots,
        BLOCK_ROWS=tile.rows,
        BLOCK_COLUMNS=tile.columns,
        BLOCK_DEPTH=tile.depth,
        STAGES=tile.stages,
    )
    return grad_gate_up_EGD, grad_down_EDF


@triton.jit
def _weight_grad_kernel(
    grad_gate_up_ptr,
    x_ptr,
    grad_out_ptr,
    hidden_ptr,
    order_ptr,
    offsets_ptr,
    grad_gate_up_weight_ptr,
    grad_down_ptr,
    x_stride,
    grad_out_stride,
    WIDTH: tl.constexpr,
    FFN: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Computes one tile of one expert's gradient: of gate and up, or of down, transposed so that
    its product, too, has rows by slot on the left and by token on the right."""
    gate_up_tiles = tl.cdiv(2 * FFN, BLOCK_ROWS) * tl.cdiv(WIDTH, BLOCK_COLUMNS)
    tiles = gate_up_tiles + tl.cdiv(FFN, BLOCK_ROWS) * tl.cdiv(WIDTH, BLOCK_COLUMNS)
    tile = tl.program_id(0) % tiles
    expert = tl.program_id(0) // tiles
    is_down = tile >= gate_up_tiles
    if is_down:
        tile -= gate_up_tiles
        left_ptr, height, right_ptr, right_stride = hidden_ptr, FFN, grad_out_ptr, grad_out_stride
    else:
        left_ptr, height, right_ptr, right_stride = grad_gate_up_ptr, 2 * FFN, x_ptr, x_stride
    column_tiles = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    rows = tile // column_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tile % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    in_height, in_width = rows < height, columns < WIDTH
    start = tl.load(offsets_ptr + expert)
    stop = tl.load(offsets_ptr + expert + 1)
    grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in tl.range(start, stop, BLOCK_DEPTH, num_stages=STAGES):
        slots = (first + tl.arange(0, BLOCK_DEPTH)).to(tl.int64)
        is_own = slots < stop
        tokens = (tl.load(order_ptr + slots, is_own, other=0) // NUM_SLOTS).to(tl.int64)
        left = tl.load(
            left_ptr + slots[None, :] * height + rows[:, None],
            is_own[None, :] & in_height[:, None],
            other=0.0,
        )
        right = tl.load(
            right_ptr + tokens[:, None] * right_stride + columns[None, :],
            is_own[:, None] & in_width[None, :],
            other=0.0,
        )
        grad = tl.dot(left, right, grad, input_precision="ieee")
    grad = grad.to(grad_down_ptr.dtype.element_ty)
    mask = in_height[:, None] & in_width[None, :]
    offset = expert.to(tl.int64) * (WIDTH * FFN)
    if is_down:
        grad_down_ptr += offset
        tl.store(
            grad_down_ptr + columns[:, None] * FFN + rows[None, :], tl.trans(grad), tl.trans(mask)
        )
    else:
        grad_gate_up_weight_ptr += 2 * offset
        tl.store(grad_gate_up_weight_ptr + rows[:, None] * WIDTH + columns[None, :], grad, mask)
