"""Computes rotary position embedding of a few rows on a CPU without gradient, for decoding and
prompts: the rows of the tables are gathered once for all layers, and q and k turn together. It
saves a twelfth of a step of a small dense model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import backend


def rope_rows(cos_PR: Tensor, sin_PR: Tensor, positions_M: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the tensors that `qk_rope` takes as its tables in every layer of one forward at these
    positions.

    For few rows on a CPU without gradient, these are the rows of the tables, gathered once, as
    (cos, cos) and (-sin, sin) [M, 1, H] fp32, for x · cos + swap(x) · sin with the halves of each
    head swapped. Otherwise they are the tables themselves.
    """
    few = len(positions_M) < backend.MIN_COMPILED_ROWS
    if not few or not backend.is_decoding(positions_M):
        return cos_PR, sin_PR
    cos_MR, sin_MR = cos_PR[positions_M], sin_PR[positions_M]
    return torch.cat((cos_MR, cos_MR), -1)[:, None], torch.cat((-sin_MR, sin_MR), -1)[:, None]


def turn_rows(
    qkv_MC: Tensor,
    cos_M1H: Tensor,
    sin_M1H: Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm_weight_H: Tensor | None,
    k_norm_weight_H: Tensor | None,
    eps: float,
    cast_before_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the result of `qk_rope` with q and k turned together: a third of the operators."""
    size, wide = cos_M1H.shape[-1], torch.promote_types(qkv_MC.dtype, cos_M1H.dtype)
    heads_MAH = qkv_MC.reshape(len(qkv_MC), num_heads + 2 * num_kv_heads, size)
    qk_MAH, v_MKH = heads_MAH.split_with_sizes((num_heads + num_kv_heads, num_kv_heads), 1)
    if q_norm_weight_H is not None and k_norm_weight_H is not None:
        # What is normed stays wide until it is turned, as in training: rounded twice, a token's
        # probability while sampling would not be the trained one.
        q_MNH, k_MKH = qk_MAH.split_with_sizes((num_heads, num_kv_heads), 1)
        q_MNH = _wide_norm(q_MNH, q_norm_weight_H.to(wide), eps, cast_before_weight)
        k_MKH = _wide_norm(k_MKH, k_norm_weight_H.to(wide), eps, cast_before_weight)
        qk_MAH = torch.cat((q_MNH, k_MKH), 1)
    qk_MAH = qk_MAH.to(wide)
    turned = torch.addcmul(qk_MAH * cos_M1H, qk_MAH.roll(size // 2, -1), sin_M1H)
    q_MNH, k_MKH = turned.to(qkv_MC.dtype).split_with_sizes((num_heads, num_kv_heads), 1)
    return q_MNH, k_MKH, v_MKH


def _wide_norm(x_MAH: Tensor, weight_H: Tensor, eps: float, cast_before_weight: bool) -> Tensor:
    """Normalises x in the weight's wide dtype; `cast_before_weight` rounds to x's own before the
    product with the weight."""
    if cast_before_weight:
        return functional.rms_norm(x_MAH, weight_H.shape, None, eps).to(weight_H.dtype) * weight_H
    return functional.rms_norm(x_MAH.to(weight_H.dtype), weight_H.shape, weight_H, eps)
