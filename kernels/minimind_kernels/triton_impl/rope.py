"""Rotates queries and keys in one launch, straight from the packed QKV product, with an optional
RMSNorm of each head; backward into one packed gradient.

A row is one head of one token and lies within one warp, so that its sums need no barrier. The tiles
of the queries' rows come first, then those of the keys, then, in the backward pass, those of the
values; programs take them in turn.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sum import column_sum
from .config import Tile, Tiles
from .head_rows import find_rows, load_angles, load_halves, mean, store_halves
from .launch import block, cdiv, device_of, launch, rows_per_tile, unit_stride

_FORWARD_TILES = Tiles("rope_forward", Tile(elements=1024, num_warps=4, programs=8))
_BACKWARD_TILES = Tiles("rope_backward", Tile(elements=1024, num_warps=4))
_NORM_BACKWARD_TILES = Tiles(
    "norm_rope_backward",
    Tile(elements=1024, num_warps=4, programs=4),
    sm_90=Tile(elements=1024, num_warps=4, programs=5),
    # The default leaves 8 bytes of one variant on the stack.
    **dict.fromkeys(("sm_86", "sm_89"), Tile(elements=2048, num_warps=8, programs=2)),
)


def rope_forward(
    qkv_MC: Tensor,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    *,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    cast_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gives the rotated q [M, N, H] and k [M, K, H]; with weights they are normed first."""
    num_tokens, half = qkv_MC.shape[0], cos_PR.shape[1]
    qkv_MC = unit_stride(qkv_MC)
    q_MNH = qkv_MC.new_empty((num_tokens, num_heads, 2 * half))
    k_MKH = qkv_MC.new_empty((num_tokens, num_kv_heads, 2 * half))
    device = device_of(qkv_MC)
    tile = device.tile(_FORWARD_TILES)
    block_rows = rows_per_tile(tile, block(half))
    num_programs = cdiv(num_tokens * (num_heads + num_kv_heads), block_rows)
    launch(
        _forward_kernel,
        (min(device.num_multiprocessors * tile.programs, num_programs),),
        tile.num_warps,
        qkv_ptr=qkv_MC,
        positions_ptr=positions_M.contiguous(),
        cos_ptr=cos_PR.contiguous(),
        sin_ptr=sin_PR.contiguous(),
        q_weight_ptr=cos_PR if q_weight_H is None else q_weight_H.contiguous(),
        k_weight_ptr=cos_PR if k_weight_H is None else k_weight_H.contiguous(),
        q_ptr=q_MNH,
        k_ptr=k_MKH,
        num_tokens=num_tokens,
        num_positions=cos_PR.shape[0],
        qkv_stride=qkv_MC.stride(0),
        eps=eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=half,
        BLOCK_ROWS=block_rows,
        BLOCK_HALF=block(half),
        HAS_NORM=q_weight_H is not None,
        CAST_BEFORE_WEIGHT=cast_before_weight and q_weight_H is not None,
    )
    return q_MNH, k_MKH


def rope_backward(
    grad_q_MNH: Tensor,
    grad_k_MKH: Tensor,
    grad_v_MKH: Tensor,
    qkv_MC: Tensor | None,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gives the packed gradient of qkv, and the gradients of both norm weights [2H], which are
    empty without a norm."""
    grads = [unit_stride(g) for g in (grad_q_MNH, grad_k_MKH, grad_v_MKH)]
    num_tokens, num_heads, head_size = grad_q_MNH.shape
    num_kv_heads, half = grad_k_MKH.shape[1], head_size // 2
    grad_qkv_MC = grad_q_MNH.new_empty((num_tokens, (num_heads + 2 * num_kv_heads) * head_size))
    has_norm = qkv_MC is not None
    qkv_MC = grad_qkv_MC if qkv_MC is None else unit_stride(qkv_MC)
    device = device_of(grad_q_MNH)
    tile = device.tile(_NORM_BACKWARD_TILES if has_norm else _BACKWARD_TILES)
    block_rows = rows_per_tile(tile, block(half))
    num_programs = cdiv(num_tokens * (num_heads + 2 * num_kv_heads), block_rows)
    if has_norm:
        num_programs = max(min(device.num_multiprocessors * tile.programs, num_programs), 1)
    partial_P2H = grad_qkv_MC.new_empty(
        (num_programs if has_norm else 0, 2 * head_size), dtype=torch.float32
    )
    launch(
        _backward_kernel,
        (num_programs,),
        tile.num_warps,
        grad_q_ptr=grads[0],
        grad_k_ptr=grads[1],
        grad_v_ptr=grads[2],
        qkv_ptr=qkv_MC,
        positions_ptr=positions_M.contiguous(),
        cos_ptr=cos_PR.contiguous(),
        sin_ptr=sin_PR.contiguous(),
        q_weight_ptr=cos_PR if q_weight_H is None else q_weight_H.contiguous(),
        k_weight_ptr=cos_PR if k_weight_H is None else k_weight_H.contiguous(),
        grad_qkv_ptr=grad_qkv_MC,
        partial_ptr=partial_P2H,
        num_tokens=num_tokens,
        num_positions=cos_PR.shape[0],
        grad_q_strides=grads[0].stride()[:2],
        grad_k_strides=grads[1].stride()[:2],
        grad_v_strides=grads[2].stride()[:2],
        qkv_stride=qkv_MC.stride(0),
        eps=eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=half,
        BLOCK_ROWS=block_rows,
        BLOCK_HALF=block(half),
        HAS_NORM=has_norm,
    )
    if q_weight_H is None:
        return grad_qkv_MC, grad_qkv_MC.new_empty(0)
    return grad_qkv_MC, column_sum(partial_P2H, q_weight_H.dtype)


@triton.jit
def _forward_heads(
    x_ptr, x_stride, y_ptr, weight_ptr, positions_ptr, tables, tile, num_tokens, eps,
    NUM: tl.constexpr, HALF: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr, CAST_BEFORE_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Rotates the rows of one kind (queries or keys) from `tile` on; gives this program's first
    tile of the next kind."""
    head: tl.constexpr = 2 * HALF
    halves = tl.arange(0, BLOCK_HALF)[None, :]
    if HAS_NORM:
        weight_first, weight_second = load_halves(weight_ptr + halves, halves < HALF, HALF)
    num_tiles = tl.cdiv(num_tokens * NUM, BLOCK_ROWS)
    while tile < num_tiles:
        tokens, heads, is_row = find_rows(tile, num_tokens, NUM, BLOCK_ROWS)
        mask = is_row & (halves < HALF)
        positions = tl.load(positions_ptr + tokens, is_row, other=0).to(tl.int64)
        first, second = load_halves(x_ptr + tokens * x_stride + heads * head + halves, mask, HALF)
        cos, sin = load_angles(tables, positions, mask, HALF, BLOCK_HALF)
        if HAS_NORM:
            rstd = tl.rsqrt(mean(first * first, second * second, HALF) + eps)
            first, second = first * rstd, second * rstd
            if CAST_BEFORE_WEIGHT:
                first = first.to(y_ptr.dtype.element_ty).to(tl.float32)
                second = second.to(y_ptr.dtype.element_ty).to(tl.float32)
            first, second = first * weight_first, second * weight_second
        store_halves(
            y_ptr + (tokens * NUM + heads) * head + halves,
            first * cos - second * sin, second * cos + first * sin, mask, HALF,
        )  # fmt: skip
        tile += tl.num_programs(0)
    return tile - num_tiles


@triton.jit(do_not_specialize=["num_tokens", "num_positions"])
def _forward_kernel(
    qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, q_ptr, k_ptr,
    num_tokens, num_positions, qkv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    CAST_BEFORE_WEIGHT: tl.constexpr,
):  # fmt: skip
    tables = (cos_ptr, sin_ptr, num_positions)
    tile = _forward_heads(
        qkv_ptr, qkv_stride, q_ptr, q_weight_ptr, positions_ptr, tables, tl.program_id(0),
        num_tokens, eps,
        NUM_HEADS, HALF, BLOCK_ROWS, BLOCK_HALF, HAS_NORM, CAST_BEFORE_WEIGHT,
    )  # fmt: skip
    _forward_heads(
        qkv_ptr + NUM_HEADS * 2 * HALF, qkv_stride, k_ptr, k_weight_ptr, positions_ptr, tables,
        tile, num_tokens, eps,
        NUM_KV_HEADS, HALF, BLOCK_ROWS, BLOCK_HALF, HAS_NORM, CAST_BEFORE_WEIGHT,
    )  # fmt: skip


@triton.jit
def _backward_heads(
    grad_ptr, grad_strides, x_ptr, x_stride, grad_x_ptr, weight_ptr, sums_ptr, positions_ptr,
    tables, tile, num_tokens, eps,
    NUM: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Rotates the gradient of one kind of rows back, then applies the norm's backward, and stores
    this program's part of the weight's gradient; gives this program's first tile of the next kind.
    """
    head: tl.constexpr = 2 * HALF
    halves = tl.arange(0, BLOCK_HALF)
    in_half = halves < HALF
    if HAS_NORM:
        weight_first, weight_second = load_halves(weight_ptr + halves, in_half, HALF)
        sum_first = tl.zeros((BLOCK_ROWS, BLOCK_HALF), tl.float32)
        sum_second = tl.zeros((BLOCK_ROWS, BLOCK_HALF), tl.float32)
    num_tiles = tl.cdiv(num_tokens * NUM, BLOCK_ROWS)
    while tile < num_tiles:
        tokens, heads, is_row = find_rows(tile, num_tokens, NUM, BLOCK_ROWS)
        mask = is_row & in_half[None, :]
        offsets = heads * head + halves[None, :]
        positions = tl.load(positions_ptr + tokens, is_row, other=0).to(tl.int64)
        grad_ptrs = grad_ptr + tokens * grad_strides[0] + heads * grad_strides[1]
        grad_first, grad_second = load_halves(grad_ptrs + halves[None, :], mask, HALF)
        if HAS_NORM:
            x_first, x_second = load_halves(x_ptr + tokens * x_stride + offsets, mask, HALF)
        cos, sin = load_angles(tables, positions, mask, HALF, BLOCK_HALF)
        first = grad_first * cos + grad_second * sin
        second = grad_second * cos - grad_first * sin
        if HAS_NORM:
            rstd = tl.rsqrt(mean(x_first * x_first, x_second * x_second, HALF) + eps)
            normed_first, normed_second = x_first * rstd, x_second * rstd
            sum_first += first * normed_first
            sum_second += second * normed_second
            first, second = first * weight_first[None, :], second * weight_second[None, :]
            projection = mean(first * normed_first, second * normed_second, HALF)
            first = rstd * (first - normed_first * projection)
            second = rstd * (second - normed_second * projection)
        store_halves(grad_x_ptr + tokens * WIDTH + offsets, first, second, mask, HALF)
        tile += tl.num_programs(0)
    if HAS_NORM:
        sums_ptrs = sums_ptr + tl.program_id(0) * (2 * head) + halves
        sum_first, sum_second = tl.sum(sum_first, axis=0), tl.sum(sum_second, axis=0)
        store_halves(sums_ptrs, sum_first, sum_second, in_half, HALF)
    return tile - num_tiles


@triton.jit(do_not_specialize=["num_tokens", "num_positions"])
def _backward_kernel(
    grad_q_ptr, grad_k_ptr, grad_v_ptr, qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_weight_ptr,
    k_weight_ptr, grad_qkv_ptr, partial_ptr,
    num_tokens, num_positions, grad_q_strides, grad_k_strides, grad_v_strides, qkv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Computes the gradients. With a norm, one program walks over many tiles and keeps a weight's
    gradient in registers; without, a program has one tile or two."""
    head: tl.constexpr = 2 * HALF
    width: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * head
    keys: tl.constexpr = NUM_HEADS * head
    tables = (cos_ptr, sin_ptr, num_positions)
    tile = _backward_heads(
        grad_q_ptr, grad_q_strides, qkv_ptr, qkv_stride, grad_qkv_ptr, q_weight_ptr, partial_ptr,
        positions_ptr, tables, tl.program_id(0),
        num_tokens, eps,
        NUM_HEADS, width, HALF, BLOCK_ROWS, BLOCK_HALF, HAS_NORM,
    )  # fmt: skip
    tile = _backward_heads(
        grad_k_ptr, grad_k_strides, qkv_ptr + keys, qkv_stride, grad_qkv_ptr + keys, k_weight_ptr,
        partial_ptr + head, positions_ptr, tables, tile, num_tokens, eps,
        NUM_KV_HEADS, width, HALF, BLOCK_ROWS, BLOCK_HALF, HAS_NORM,
    )  # fmt: skip
    halves = tl.arange(0, BLOCK_HALF)[None, :]
    grad_values_ptr = grad_qkv_ptr + keys + NUM_KV_HEADS * head
    while tile < tl.cdiv(num_tokens * NUM_KV_HEADS, BLOCK_ROWS):
        tokens, heads, is_row = find_rows(tile, num_tokens, NUM_KV_HEADS, BLOCK_ROWS)
        mask = is_row & (halves < HALF)
        grad_ptrs = grad_v_ptr + tokens * grad_v_strides[0] + heads * grad_v_strides[1] + halves
        first, second = load_halves(grad_ptrs, mask, HALF)
        value_ptrs = grad_values_ptr + tokens * width + heads * head + halves
        store_halves(value_ptrs, first, second, mask, HALF)
        tile += tl.num_programs(0)
