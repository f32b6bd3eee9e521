"""Computes products of all experts in one launch each, over a fixed grid (expert_tiles.py): two in
the forward pass; two in the backward pass, and one for the experts' own gradients. With several
slots per token, each pass has one more launch, which sums them. Each program owns its output: no
atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import ProductTile, ProductTiles
from .expert_tiles import blocks_of, find_tile, grid_over_slots
from .expert_to_slots import multiply_and_sum_slots
from .expert_weight_grad import expert_weight_grads
from .launch import cdiv, device_of, launch, unit_stride

# Two products side by side, of gate and of up.
_UP_TILES = ProductTiles(
    "expert_up",
    ProductTile(128, 64, 64, num_warps=8, stages=3),
    candidates=(ProductTile(128, 128, 64, num_warps=8, stages=3),),
)
# Small enough for two programs to share a multiprocessor: one loads while the other computes the
# activation.
_ACTIVATION_GRAD_TILES = ProductTiles(
    "expert_activation_grad",
    ProductTile(64, 64, 64, num_warps=4, stages=3),
    candidates=(ProductTile(128, 64, 64, num_warps=8, stages=3),),
    # With half the warps, 32 bytes of the activation's gradient lie on the stack.
    **dict.fromkeys(
        ("sm_80", "sm_86", "sm_89", "sm_120"), ProductTile(64, 64, 64, num_warps=8, stages=3)
    ),
    gfx942=ProductTile(64, 64, 64, num_warps=4, stages=2),
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
    tile = device_of(x_MD).tile(_UP_TILES, x_MD.dtype)
    launch(
        _up_kernel,
        grid_over_slots(len(order_P), num_experts, ffn, tile),
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
        **blocks_of(num_experts, tile),
    )
    out_MD = multiply_and_sum_slots(
        hidden_PF, down_EDF, order_P, offsets_E1, num_slots, transposed=True, weights_MS=weights_MS
    )
    return out_MD, gate_up_PG


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
    tile = device_of(x_MD).tile(_ACTIVATION_GRAD_TILES, x_MD.dtype)
    num_parts = cdiv(ffn, tile.columns)
    partial_NP = x_MD.new_empty((num_parts, len(order_P)), dtype=torch.float32)
    launch(
        _activation_grad_kernel,
        grid_over_slots(len(order_P), num_experts, ffn, tile),
        tile.num_warps,
        grad_out_ptr=grad_out_MD,
        order_ptr=order_P,
        offsets_ptr=offsets_E1,
        down_weight_ptr=down_EDF.contiguous(),
        gate_up_ptr=gate_up_PG,
        weights_ptr=weights_MS.contiguous(),
        grad_gate_up_ptr=grad_gate_up_PG,
        hidden_ptr=hidden_PF,
        partial_ptr=partial_NP,
        grad_out_stride=grad_out_MD.stride(0),
        num_rows=len(order_P),
        WIDTH=hidden,
        FFN=ffn,
        NUM_SLOTS=num_slots,
        **blocks_of(num_experts, tile),
    )
    grad_weights_MS = weights_MS.new_empty(weights_MS.shape)
    grad_x_MD = multiply_and_sum_slots(
        grad_gate_up_PG, gate_up_EGD, order_P, offsets_E1, num_slots, transposed=False,
        grad_weights=(partial_NP, grad_weights_MS),
    )  # fmt: skip
    if not grad_of_experts:
        return grad_x_MD, grad_weights_MS, x_MD.new_empty(0), x_MD.new_empty(0)
    grads_of_experts = expert_weight_grads(
        grad_gate_up_PG, x_MD, grad_out_MD, hidden_PF, order_P, offsets_E1, num_slots
    )
    return grad_x_MD, grad_weights_MS, *grads_of_experts


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
    expert, first_slot, count, rows, columns = find_tile(
        offsets_ptr, FFN, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if count <= 0:
        return
    is_own = rows < count
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
    num_rows,
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
    """Computes d = dy · down, and from it three results: the gradients of gate and up (see
    swiglu.py), for d times the slot's weight; the hidden values, rebuilt and weighted; and this
    tile's part of Σ d · hidden, the gradient of the slot's weight."""
    expert, first_slot, count, rows, columns = find_tile(
        offsets_ptr, FFN, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_ROWS, BLOCK_COLUMNS
    )
    if count <= 0:
        return
    is_own = rows < count
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
        partial_ptr + part.to(tl.int64) * num_rows + first_slot + rows,
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
