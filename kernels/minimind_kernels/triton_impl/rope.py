"""Rotates queries and keys in one launch, straight from the packed QKV product, with an optional
RMSNorm of each head; backward into one packed gradient."""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sum import column_sum
from .config import Tile, Tiles
from .launch import block, cdiv, device_of, launch, rows_per_tile, unit_stride

_FORWARD_TILES = Tiles("rope_forward", Tile(elements=2048, num_warps=4))
_BACKWARD_TILES = Tiles("rope_backward", Tile(elements=1024, num_warps=4))
_NORM_BACKWARD_TILES = Tiles("norm_rope_backward", Tile(elements=1024, num_warps=4, programs=4))


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
    tile = device_of(qkv_MC).tile(_FORWARD_TILES)
    block_tokens = rows_per_tile(tile, block(num_heads) * block(half))
    launch(
        _forward_kernel,
        (cdiv(num_tokens, block_tokens),),
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
        qkv_stride=qkv_MC.stride(0),
        eps=eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=half,
        BLOCK_TOKENS=block_tokens,
        BLOCK_HEADS=block(num_heads),
        BLOCK_KV_HEADS=block(num_kv_heads),
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
    """Gives the packed gradient of qkv and those of both weights [2H], empty without a norm."""
    grads = [unit_stride(g) for g in (grad_q_MNH, grad_k_MKH, grad_v_MKH)]
    num_tokens, num_heads, head_size = grad_q_MNH.shape
    num_kv_heads, half = grad_k_MKH.shape[1], head_size // 2
    grad_qkv_MC = grad_q_MNH.new_empty((num_tokens, (num_heads + 2 * num_kv_heads) * head_size))
    has_norm = qkv_MC is not None
    qkv_MC = grad_qkv_MC if qkv_MC is None else unit_stride(qkv_MC)
    device = device_of(grad_q_MNH)
    tile = device.tile(_NORM_BACKWARD_TILES if has_norm else _BACKWARD_TILES)
    block_tokens = rows_per_tile(tile, block(num_heads) * block(half))
    num_programs = cdiv(num_tokens, block_tokens)
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
        grad_q_strides=grads[0].stride()[:2],
        grad_k_strides=grads[1].stride()[:2],
        grad_v_strides=grads[2].stride()[:2],
        qkv_stride=qkv_MC.stride(0),
        eps=eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=half,
        BLOCK_TOKENS=block_tokens,
        BLOCK_HEADS=block(num_heads),
        BLOCK_KV_HEADS=block(num_kv_heads),
        BLOCK_HALF=block(half),
        HAS_NORM=has_norm,
    )
    if q_weight_H is None:
        return grad_qkv_MC, grad_qkv_MC.new_empty(0)
    return grad_qkv_MC, column_sum(partial_P2H, q_weight_H.dtype)


@triton.jit
def _offsets(
    tokens, token_stride, head_stride, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """Gives offsets [tokens, heads, first half of a head]."""
    heads = tl.arange(0, BLOCK_HEADS)[None, :, None]
    halves = tl.arange(0, BLOCK_HALF)[None, None, :]
    return tokens[:, None, None] * token_stride + heads * head_stride + halves


@triton.jit
def _mask(
    is_token,
    NUM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    is_head = tl.arange(0, BLOCK_HEADS)[None, :, None] < NUM
    return is_token[:, None, None] & is_head & (tl.arange(0, BLOCK_HALF)[None, None, :] < HALF)


@triton.jit
def _angles(
    positions_ptr, cos_ptr, sin_ptr, tokens, is_token, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr
):
    """Gives cos and sin [tokens, 1, half]."""
    positions = tl.load(positions_ptr + tokens, is_token, other=0).to(tl.int64)
    halves = tl.arange(0, BLOCK_HALF)[None, None, :]
    offsets = positions[:, None, None] * HALF + halves
    mask = is_token[:, None, None] & (halves < HALF)
    return tl.load(cos_ptr + offsets, mask, other=0.0), tl.load(sin_ptr + offsets, mask, other=0.0)


@triton.jit
def _weights(weight_ptr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    halves = tl.arange(0, BLOCK_HALF)[None, None, :]
    first = tl.load(weight_ptr + halves, halves < HALF, other=0.0).to(tl.float32)
    second = tl.load(weight_ptr + HALF + halves, halves < HALF, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _load_halves(ptrs, mask, HALF: tl.constexpr):
    first = tl.load(ptrs, mask, other=0.0).to(tl.float32)
    return first, tl.load(ptrs + HALF, mask, other=0.0).to(tl.float32)


@triton.jit
def _store_halves(ptrs, first, second, mask, HALF: tl.constexpr):
    tl.store(ptrs, first.to(ptrs.dtype.element_ty), mask)
    tl.store(ptrs + HALF, second.to(ptrs.dtype.element_ty), mask)


@triton.jit
def _rstd(first, second, eps, HALF: tl.constexpr):
    """Gives the reciprocal root mean square of each head: [tokens, heads, 1]."""
    mean = (tl.sum(first * first, axis=2) + tl.sum(second * second, axis=2)) / (2 * HALF)
    return tl.div_rn(1.0, tl.sqrt_rn(mean + eps))[:, :, None]


@triton.jit
def _forward_heads(
    in_ptrs, out_ptrs, weight_ptr, cos, sin, mask, eps,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    CAST_BEFORE_WEIGHT: tl.constexpr,
):  # fmt: skip
    first, second = _load_halves(in_ptrs, mask, HALF)
    if HAS_NORM:
        rstd = _rstd(first, second, eps, HALF)
        first, second = first * rstd, second * rstd
        if CAST_BEFORE_WEIGHT:
            first = first.to(out_ptrs.dtype.element_ty).to(tl.float32)
            second = second.to(out_ptrs.dtype.element_ty).to(tl.float32)
        weight_first, weight_second = _weights(weight_ptr, HALF, BLOCK_HALF)
        first, second = first * weight_first, second * weight_second
    _store_halves(out_ptrs, first * cos - second * sin, second * cos + first * sin, mask, HALF)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward_kernel(
    qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, q_ptr, k_ptr,
    num_tokens, qkv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr, CAST_BEFORE_WEIGHT: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_token = tokens < num_tokens
    cos, sin = _angles(positions_ptr, cos_ptr, sin_ptr, tokens, is_token, HALF, BLOCK_HALF)
    head: tl.constexpr = 2 * HALF
    _forward_heads(
        qkv_ptr + _offsets(tokens, qkv_stride, head, BLOCK_HEADS, BLOCK_HALF),
        q_ptr + _offsets(tokens, NUM_HEADS * head, head, BLOCK_HEADS, BLOCK_HALF),
        q_weight_ptr, cos, sin, _mask(is_token, NUM_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF), eps,
        HALF, BLOCK_HALF, HAS_NORM, CAST_BEFORE_WEIGHT,
    )  # fmt: skip
    keys_ptr = qkv_ptr + NUM_HEADS * head
    _forward_heads(
        keys_ptr + _offsets(tokens, qkv_stride, head, BLOCK_KV_HEADS, BLOCK_HALF),
        k_ptr + _offsets(tokens, NUM_KV_HEADS * head, head, BLOCK_KV_HEADS, BLOCK_HALF),
        k_weight_ptr, cos, sin, _mask(is_token, NUM_KV_HEADS, HALF, BLOCK_KV_HEADS, BLOCK_HALF),
        eps, HALF, BLOCK_HALF, HAS_NORM, CAST_BEFORE_WEIGHT,
    )  # fmt: skip


@triton.jit
def _backward_heads(
    grad_ptrs, in_ptrs, out_ptrs, weight_ptr, sum_first, sum_second, cos, sin, mask, eps,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Turns the gradient back, then through the norm; adds the weight's gradient to the sums."""
    grad_first, grad_second = _load_halves(grad_ptrs, mask, HALF)
    first = grad_first * cos + grad_second * sin
    second = grad_second * cos - grad_first * sin
    if HAS_NORM:
        normed_first, normed_second = _load_halves(in_ptrs, mask, HALF)
        rstd = _rstd(normed_first, normed_second, eps, HALF)
        normed_first, normed_second = normed_first * rstd, normed_second * rstd
        sum_first += tl.sum(first * normed_first, axis=1)
        sum_second += tl.sum(second * normed_second, axis=1)
        weight_first, weight_second = _weights(weight_ptr, HALF, BLOCK_HALF)
        first, second = first * weight_first, second * weight_second
        projection = tl.sum(first * normed_first, axis=2) + tl.sum(second * normed_second, axis=2)
        projection = (projection / (2 * HALF))[:, :, None]
        first = rstd * (first - normed_first * projection)
        second = rstd * (second - normed_second * projection)
    _store_halves(out_ptrs, first, second, mask, HALF)
    return sum_first, sum_second


@triton.jit(do_not_specialize=["num_tokens"])
def _backward_kernel(
    grad_q_ptr, grad_k_ptr, grad_v_ptr, qkv_ptr, positions_ptr, cos_ptr, sin_ptr, q_weight_ptr,
    k_weight_ptr, grad_qkv_ptr, partial_ptr,
    num_tokens, grad_q_strides, grad_k_strides, grad_v_strides, qkv_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_KV_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Computes the gradients. With a norm, one program walks over many tiles and keeps the weights'
    gradients in registers; without, each program has one tile."""
    head: tl.constexpr = 2 * HALF
    width: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * head
    halves = tl.arange(0, BLOCK_HALF)
    q_first = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    q_second = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    k_first = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    k_second = tl.zeros((BLOCK_TOKENS, BLOCK_HALF), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_TOKENS), tl.num_programs(0)):
        tokens = (tile * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)).to(tl.int64)
        is_token = tokens < num_tokens
        cos, sin = _angles(positions_ptr, cos_ptr, sin_ptr, tokens, is_token, HALF, BLOCK_HALF)
        q_first, q_second = _backward_heads(
            grad_q_ptr
            + _offsets(tokens, grad_q_strides[0], grad_q_strides[1], BLOCK_HEADS, BLOCK_HALF),
            qkv_ptr + _offsets(tokens, qkv_stride, head, BLOCK_HEADS, BLOCK_HALF),
            grad_qkv_ptr + _offsets(tokens, width, head, BLOCK_HEADS, BLOCK_HALF),
            q_weight_ptr, q_first, q_second, cos, sin,
            _mask(is_token, NUM_HEADS, HALF, BLOCK_HEADS, BLOCK_HALF), eps,
            HALF, BLOCK_HALF, HAS_NORM,
        )  # fmt: skip
        kv_mask = _mask(is_token, NUM_KV_HEADS, HALF, BLOCK_KV_HEADS, BLOCK_HALF)
        grad_keys_ptr = grad_qkv_ptr + NUM_HEADS * head
        k_first, k_second = _backward_heads(
            grad_k_ptr
            + _offsets(tokens, grad_k_strides[0], grad_k_strides[1], BLOCK_KV_HEADS, BLOCK_HALF),
            qkv_ptr + NUM_HEADS * head
            + _offsets(tokens, qkv_stride, head, BLOCK_KV_HEADS, BLOCK_HALF),
            grad_keys_ptr + _offsets(tokens, width, head, BLOCK_KV_HEADS, BLOCK_HALF),
            k_weight_ptr, k_first, k_second, cos, sin, kv_mask, eps, HALF, BLOCK_HALF, HAS_NORM,
        )  # fmt: skip
        v_first, v_second = _load_halves(
            grad_v_ptr
            + _offsets(tokens, grad_v_strides[0], grad_v_strides[1], BLOCK_KV_HEADS, BLOCK_HALF),
            kv_mask, HALF,
        )  # fmt: skip
        grad_values_ptr = grad_keys_ptr + NUM_KV_HEADS * head
        _store_halves(
            grad_values_ptr + _offsets(tokens, width, head, BLOCK_KV_HEADS, BLOCK_HALF),
            v_first, v_second, kv_mask, HALF,
        )  # fmt: skip
    if HAS_NORM:
        sums_ptr = partial_ptr + tl.program_id(0) * (2 * head) + halves
        in_half = halves < HALF
        tl.store(sums_ptr, tl.sum(q_first, axis=0), in_half)
        tl.store(sums_ptr + HALF, tl.sum(q_second, axis=0), in_half)
        tl.store(sums_ptr + head, tl.sum(k_first, axis=0), in_half)
        tl.store(sums_ptr + head + HALF, tl.sum(k_second, axis=0), in_half)
