"""Computes products of all experts in one launch each, over a fixed grid: forward two, backward
four.

Only the device knows how many slots an expert has. So the grid has as many row tiles as any
distribution can need, ⌊P / rows⌋ and one more for each expert. A program finds its expert by the
offsets; programs beyond the last tile end at once. Each program owns its output: no atomics.
"""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import ProductTile, Tiles
from .expert_weight_grad import expert_weight_grad
from .launch import block, cdiv, device_of, launch, unit_stride

# Two products side by side, of gate and of up.
_UP_TILES = Tiles("expert_up", ProductTile(128, 64, 64, num_warps=8, stages=3))
_TO_SLOTS_TILES = Tiles("expert_to_slots", ProductTile(128, 128, 64, num_warps=8, stages=3))
_ACTIVATION_GRAD_TILES = Tiles(
    "expert_activation_grad",
    ProductTile(128, 64, 64, num_warps=8, stages=3),
    # With 128 rows, 16 bytes of the activation's gradient lie on the stack.
    **dict.fromkeys(
        ("sm_80", "sm_86", "sm_89", "sm_120"), ProductTile(64, 64, 64, num_warps=8, stages=3)
    ),
)


def expert_ffn_forward(
    x_MD: Tensor,
    weights_MS: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Gives the result and, with `keep`, the product with gate and up [P, 2F]."""
    num_experts, hidden, ffn = down_EDF.shape
    num_slots = weights_MS.shape[1]
    x_MD = unit_stride(x_MD)
    hidden_PF = x_MD.new_empty(len(order_P), ffn)
    gate_up_PG = x_MD.new_empty(len(order_P) if keep else 0, 2 * ffn)
    tile = device_of(x_MD).product_tile(_UP_TILES, x_MD.dtype)
    launch(
        _up_kernel,
        _grid(len(order_P), num_experts, ffn, tile),
        tile.num_warps,
        x_ptr=x_MD,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        gate_up_weight_ptr=gate_up_EGD.contiguous(),
        gate_up_ptr=gate_up_PG,
        hidden_ptr=hidden_PF,
        x_stride=x_MD.stride(0),
        WIDTH=hidden,
        FFN=ffn,
        NUM_SLOTS=num_slots,
        KEEP=keep,
        **_blocks(num_experts, tile),
    )
    out_PD = _to_slots(hidden_PF, down_EDF, order_P, offsets_E1, weights_MS, transposed=True)
    return _sum_of_slots(out_PD, num_slots), gate_up_PG


def expert_ffn_backward(
    grad_out_MD: Tensor,
    x_MD: Tensor,
    weights_MS: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    gate_up_PG: Tensor,
    *,
    grad_of_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gives the gradients of x, the routing weights, gate_up and down; without `grad_of_experts`
    the last two are empty."""
    num_experts, hidden, ffn = down_EDF.shape
    num_slots = weights_MS.shape[1]
    grad_out_MD, x_MD = unit_stride(grad_out_MD), unit_stride(x_MD)
    grad_gate_up_PG = torch.empty_like(gate_up_PG)
    hidden_PF = x_MD.new_empty(len(order_P), ffn)
    tile = device_of(x_MD).product_tile(_ACTIVATION_GRAD_TILES, x_MD.dtype)
    num_parts = cdiv(ffn, tile.columns)
    partial_PN = x_MD.new_empty((len(order_P), num_parts), dtype=torch.float32)
    launch(
        _activation_grad_kernel,
        _grid(len(order_P), num_experts, ffn, tile),
        tile.num_warps,
        grad_out_ptr=grad_out_MD,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        down_weight_ptr=down_EDF.contiguous(),
        gate_up_ptr=gate_up_PG,
        weights_ptr=weights_MS.contiguous(),
        grad_gate_up_ptr=grad_gate_up_PG,
        hidden_ptr=hidden_PF,
        partial_ptr=partial_PN,
        grad_out_stride=grad_out_MD.stride(0),
        WIDTH=hidden,
        FFN=ffn,
        NUM_SLOTS=num_slots,
        **_blocks(num_experts, tile),
    )
    grad_weights_MS = partial_PN.view(*weights_MS.shape, num_parts).sum(dim=2)
    grad_x_PD = _to_slots(grad_gate_up_PG, gate_up_EGD, order_P, offsets_E1, None, transposed=False)
    grad_x_MD = _sum_of_slots(grad_x_PD, num_slots)
    if not grad_of_experts:
        return grad_x_MD, grad_weights_MS, x_MD.new_empty(0), x_MD.new_empty(0)
    order = (order_P, offsets_E1, num_slots)
    grad_gate_up_EGD = expert_weight_grad(grad_gate_up_PG, x_MD, *order, left_by_token=False)
    grad_down_EDF = expert_weight_grad(grad_out_MD, hidden_PF, *order, left_by_token=True)
    return grad_x_MD, grad_weights_MS, grad_gate_up_EGD, grad_down_EDF


def _to_slots(
    rows_PK: Tensor,
    weight: Tensor,
    order_P: Tensor,
    offsets_E1: Tensor,
    weights_MS: Tensor | None,
    *,
    transposed: bool,
) -> Tensor:
    """Multiplies each sorted row with its expert's weight [E, K, D], or [E, D, K] if `transposed`,
    and with the slot's own weight, and stores it at its slot in the order of tokens: [P, D]."""
    num_experts = weight.shape[0]
    depth, width = weight.shape[:0:-1] if transposed else weight.shape[1:]
    out_PD = rows_PK.new_empty(len(rows_PK), width)
    tile = device_of(rows_PK).product_tile(_TO_SLOTS_TILES, rows_PK.dtype)
    launch(
        _to_slots_kernel,
        _grid(len(rows_PK), num_experts, width, tile),
        tile.num_warps,
        left_ptr=rows_PK,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        weight_ptr=weight.contiguous(),
        weights_ptr=out_PD if weights_MS is None else weights_MS.contiguous(),
        out_ptr=out_PD,
        DEPTH=depth,
        WIDTH=width,
        DEPTH_STRIDE=1 if transposed else width,
        COLUMN_STRIDE=depth if transposed else 1,
        HAS_WEIGHTS=weights_MS is not None,
        **_blocks(num_experts, tile),
    )
    return out_PD


def _sum_of_slots(out_PD: Tensor, num_slots: int) -> Tensor:
    """Sums over slots by PyTorch, which adds in fp32 and casts once."""
    if num_slots == 1:
        return out_PD
    return out_PD.view(-1, num_slots, out_PD.shape[1]).sum(dim=1)


def _grid(num_slots: int, num_experts: int, width: int, tile: ProductTile) -> tuple[int]:
    row_tiles = num_slots // tile.rows + min(num_experts, num_slots)
    return (row_tiles * cdiv(width, tile.columns),)


def _blocks(num_experts: int, tile: ProductTile) -> dict[str, int]:
    return {
        "NUM_EXPERTS": num_experts,
        "BLOCK_EXPERTS": block(num_experts),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_DEPTH": tile.depth,
        "STAGES": tile.stages,
    }


@triton.jit
def _tile(
    offsets_ptr,
    WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Gives (expert, first slot, rows from there on, a mask of its own rows, columns) of this
    program; the expert is NUM_EXPERTS beyond the last tile. Neighbouring programs share their
    rows."""
    column_tiles = tl.cdiv(WIDTH, BLOCK_COLUMNS)
    tile = tl.program_id(0) // column_tiles
    columns = tl.program_id(0) % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    experts = tl.arange(0, BLOCK_EXPERTS)
    is_expert = experts < NUM_EXPERTS
    starts = tl.load(offsets_ptr + experts, is_expert, other=0)
    stops = tl.load(offsets_ptr + experts + 1, is_expert, other=0)
    tiles = (stops - starts + BLOCK_ROWS - 1) // BLOCK_ROWS
    ends = tl.cumsum(tiles, axis=0)
    expert = tl.sum((is_expert & (ends <= tile)).to(tl.int32), axis=0)
    first = starts + (tile - ends + tiles) * BLOCK_ROWS
    first = tl.sum(tl.where(experts == expert, first, 0), axis=0)
    stop = tl.sum(tl.where(experts == expert, stops, 0), axis=0)
    rows = tl.arange(0, BLOCK_ROWS)
    # 64 bits for what is one number, 32 for what each thread has many of.
    return expert.to(tl.int64), first.to(tl.int64), rows, first + rows < stop, columns


@triton.jit
def _up_kernel(
    x_ptr,
    order_ptr,
    offsets_ptr,
    gate_up_weight_ptr,
    gate_up_ptr,
    hidden_ptr,
    x_stride,
    WIDTH: tl.constexpr,
    FFN: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    KEEP: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiplies the tokens of a tile with gate and up of their expert, and computes silu(gate) ·
    up."""
    expert, first_slot, rows, is_own, columns = _tile(
        offsets_ptr, FFN, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if expert >= NUM_EXPERTS:
        return
    in_width = columns < FFN
    tokens = (tl.load(order_ptr + first_slot + rows, is_own, other=0) // NUM_SLOTS).to(tl.int64)
    gate_weight_ptr = gate_up_weight_ptr + expert * (2 * FFN * WIDTH)
    gate = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in tl.range(0, WIDTH, BLOCK_DEPTH, num_stages=STAGES):
        depth = first + tl.arange(0, BLOCK_DEPTH)
        in_depth = depth < WIDTH
        x = tl.load(
            x_ptr + tokens[:, None] * x_stride + depth[None, :],
            is_own[:, None] & in_depth[None, :],
            other=0.0,
        )
        offsets = columns[None, :] * WIDTH + depth[:, None]
        mask = in_depth[:, None] & in_width[None, :]
        gate_weight = tl.load(gate_weight_ptr + offsets, mask, other=0.0)
        gate = tl.dot(x, gate_weight, gate, input_precision="ieee")
        up_weight = tl.load(gate_weight_ptr + FFN * WIDTH + offsets, mask, other=0.0)
        up = tl.dot(x, up_weight, up, input_precision="ieee")
    mask = is_own[:, None] & in_width[None, :]
    if KEEP:
        gate_up_ptr += first_slot * (2 * FFN)
        offsets = rows[:, None] * (2 * FFN) + columns[None, :]
        tl.store(gate_up_ptr + offsets, gate.to(gate_up_ptr.dtype.element_ty), mask)
        tl.store(gate_up_ptr + FFN + offsets, up.to(gate_up_ptr.dtype.element_ty), mask)
    hidden = gate / (1.0 + tl.exp(-gate)) * up
    offsets = rows[:, None] * FFN + columns[None, :]
    hidden_ptr += first_slot * FFN
    tl.store(hidden_ptr + offsets, hidden.to(hidden_ptr.dtype.element_ty), mask)


@triton.jit
def _to_slots_kernel(
    left_ptr,
    order_ptr,
    offsets_ptr,
    weight_ptr,
    weights_ptr,
    out_ptr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Multiplies a tile's rows with their expert's weight, and stores each at its token's place."""
    expert, first_slot, rows, is_own, columns = _tile(
        offsets_ptr, WIDTH, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if expert >= NUM_EXPERTS:
        return
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


@triton.jit
def _activation_grad_kernel(
    grad_out_ptr,
    order_ptr,
    offsets_ptr,
    down_weight_ptr,
    gate_up_ptr,
    weights_ptr,
    grad_gate_up_ptr,
    hidden_ptr,
    partial_ptr,
    grad_out_stride,
    WIDTH: tl.constexpr,
    FFN: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Computes d = dy · down, then the gradients of gate and up (see swiglu.py) from d times the
    slot's weight, the hidden values rebuilt and weighted, and this tile's part of the weight's Σ d
    · hidden."""
    expert, first_slot, rows, is_own, columns = _tile(
        offsets_ptr, FFN, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if expert >= NUM_EXPERTS:
        return
    in_width = columns < FFN
    tokens = (tl.load(order_ptr + first_slot + rows, is_own, other=0) // NUM_SLOTS).to(tl.int64)
    down_weight_ptr += expert * (WIDTH * FFN)
    grad = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for first in tl.range(0, WIDTH, BLOCK_DEPTH, num_stages=STAGES):
        depth = first + tl.arange(0, BLOCK_DEPTH)
        in_depth = depth < WIDTH
        grad_out = tl.load(
            grad_out_ptr + tokens[:, None] * grad_out_stride + depth[None, :],
            is_own[:, None] & in_depth[None, :],
            other=0.0,
        )
        down_weight = tl.load(
            down_weight_ptr + depth[:, None] * FFN + columns[None, :],
            in_depth[:, None] & in_width[None, :],
            other=0.0,
        )
        grad = tl.dot(grad_out, down_weight, grad, input_precision="ieee")
    mask = is_own[:, None] & in_width[None, :]
    offsets = rows[:, None] * (2 * FFN) + columns[None, :]
    gate_up_ptr += first_slot * (2 * FFN)
    gate = tl.load(gate_up_ptr + offsets, mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + FFN + offsets, mask, other=0.0).to(tl.float32)
    order = tl.load(order_ptr + first_slot + rows, is_own, other=0).to(tl.int64)
    weight = tl.load(weights_ptr + order, is_own, other=0.0)[:, None]
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    hidden = gate * sigmoid * up
    part = tl.program_id(0) % tl.cdiv(FFN, BLOCK_COLUMNS)
    tl.store(
        partial_ptr + order * tl.cdiv(FFN, BLOCK_COLUMNS) + part,
        tl.sum(grad * hidden, axis=1),
        is_own,
    )
    element_type = grad_gate_up_ptr.dtype.element_ty
    hidden_ptr += first_slot * FFN
    hidden_offsets = rows[:, None] * FFN + columns[None, :]
    tl.store(hidden_ptr + hidden_offsets, (hidden * weight).to(element_type), mask)
    grad *= weight * sigmoid
    grad_gate_up_ptr += first_slot * (2 * FFN)
    tl.store(grad_gate_up_ptr + FFN + offsets, (grad * gate).to(element_type), mask)
    grad_gate = grad * up * (1.0 + gate * (1.0 - sigmoid))
    tl.store(grad_gate_up_ptr + offsets, grad_gate.to(element_type), mask)
