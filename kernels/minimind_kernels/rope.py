"""Rotary position embedding of queries and keys, with an optional RMSNorm of each head before it.

With (a, b) the two halves of a head and angles θ of its position:

    a' = a·cos θ - b·sin θ,   b' = b·cos θ + a·sin θ

Su et al., "RoFormer", 2021, in the rotate-half layout of GPT-NeoX and Hugging Face's Llama; the
norm of queries and keys as in Qwen3 (Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters", 2023).

P is the number of positions in the tables, C = (N + 2K)·H the width of the packed product: the N
query heads, then the K key heads, then the K value heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backend
from .form import Form, sum_rows
from .rms_norm import rms_norm_reference
from .rope_rows import turn_rows


def qk_rope_reference(
    qkv_MC: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_M: Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm_weight_H: Tensor | None = None,
    k_norm_weight_H: Tensor | None = None,
    eps: float = 1e-6,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula in PyTorch; the rotation in fp32 (fp64 stays fp64)."""
    q_MNH, k_MKH, v_MKH = _split(qkv_MC, num_heads, num_kv_heads)
    if q_norm_weight_H is not None and k_norm_weight_H is not None:
        q_MNH = rms_norm_reference(q_MNH, q_norm_weight_H, eps, cast_before_weight)
        k_MKH = rms_norm_reference(k_MKH, k_norm_weight_H, eps, cast_before_weight)
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    return _rotate(q_MNH, cos_M1R, sin_M1R), _rotate(k_MKH, cos_M1R, sin_M1R), v_MKH


def qk_rope(
    qkv_MC: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_M: Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm_weight_H: Tensor | None = None,
    k_norm_weight_H: Tensor | None = None,
    eps: float = 1e-6,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the packed QKV product and rotate its queries and keys: (q_MNH, k_MKH, v_MKH).

    qkv_MC [M, (N + 2K)·H] fp32, fp16 or bf16; cos_PR and sin_PR [P, H/2] fp32, one angle for each
    pair of dimensions i and i + H/2; positions_M [M] int32 or int64, each below P. q and k are new
    and contiguous, v is a view of qkv, all in its dtype. With both norm weights [H] given, each
    head of q and k is normalised first (see `rms_norm` for eps and the order of the cast). Norm
    and rotation run in fp32 with one cast at the end, except for the cast that
    `cast_before_weight` asks for. The gradient of qkv comes as one packed tensor. In place of the
    tables the two tensors of `rope_rows` for the same positions will do; then q and k are views of
    one new tensor, and there is no gradient.

    Raises ValueError where shapes do not agree or one norm weight comes without the other.
    """
    if cos_PR.ndim == 3:
        return turn_rows(
            qkv_MC, cos_PR, sin_PR, num_heads, num_kv_heads, q_norm_weight_H, k_norm_weight_H, eps,
            cast_before_weight,
        )  # fmt: skip
    _check(
        qkv_MC, cos_PR, sin_PR, positions_M, num_heads, num_kv_heads, q_norm_weight_H,
        k_norm_weight_H,
    )  # fmt: skip
    if backend.inlines("qk_rope", qkv_MC):
        return qk_rope_reference(
            qkv_MC, cos_PR, sin_PR, positions_M, num_heads, num_kv_heads, q_norm_weight_H,
            k_norm_weight_H, eps, cast_before_weight,
        )  # fmt: skip
    tables = (positions_M, cos_PR, sin_PR)
    if q_norm_weight_H is None or k_norm_weight_H is None:
        return _Rope.apply(qkv_MC, *tables, num_heads, num_kv_heads)
    return _NormRope.apply(
        qkv_MC, *tables, q_norm_weight_H, k_norm_weight_H, num_heads, num_kv_heads, eps,
        cast_before_weight,
    )  # fmt: skip


def _check(
    qkv_MC: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    positions_M: Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm_weight_H: Tensor | None,
    k_norm_weight_H: Tensor | None,
) -> None:
    head_size = 2 * cos_PR.shape[-1]
    width = (num_heads + 2 * num_kv_heads) * head_size
    if qkv_MC.ndim != 2 or qkv_MC.shape[1] != width:
        raise ValueError(
            f"qk_rope with {num_heads} + 2·{num_kv_heads} heads of {head_size} (twice the tables' "
            f"width) takes a packed product of [M, {width}], not {tuple(qkv_MC.shape)}"
        )
    if cos_PR.shape != sin_PR.shape or positions_M.shape != qkv_MC.shape[:1]:
        raise ValueError(
            f"qk_rope takes tables of one shape and a position for each of {qkv_MC.shape[0]} rows, "
            f"not cos {tuple(cos_PR.shape)}, sin {tuple(sin_PR.shape)} and positions "
            f"{tuple(positions_M.shape)}"
        )
    norms = (q_norm_weight_H, k_norm_weight_H)
    if any((w is None) != (norms[0] is None) for w in norms):
        raise ValueError("qk_rope normalises both q and k or neither: give both weights or none")
    if any(w is not None and w.shape != (head_size,) for w in norms):
        raise ValueError(f"qk_rope takes norm weights of [{head_size}], the head size")


def _rotate(x_MAH: Tensor, cos_M1R: Tensor, sin_M1R: Tensor) -> Tensor:
    """Rotate each head, in the wider of x's and the tables' dtypes, back in x's."""
    first, second = x_MAH.to(torch.promote_types(x_MAH.dtype, cos_M1R.dtype)).chunk(2, dim=-1)
    rotated = (first * cos_M1R - second * sin_M1R, second * cos_M1R + first * sin_M1R)
    return torch.cat([half.to(x_MAH.dtype) for half in rotated], dim=-1)


def _split(packed_MC: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = num_heads + 2 * num_kv_heads
    heads_MAH = packed_MC.reshape(packed_MC.shape[0], heads, packed_MC.shape[1] // heads)
    q_MNH, k_MKH, v_MKH = heads_MAH.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    return q_MNH, k_MKH, v_MKH


def _forward_body(
    qkv_MC: Tensor,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[Tensor, Tensor]:
    q_MNH, k_MKH, _ = _split(qkv_MC, num_heads, num_kv_heads)
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    return _rotate(q_MNH, cos_M1R, sin_M1R), _rotate(k_MKH, cos_M1R, sin_M1R)


def _norm_forward_body(
    qkv_MC: Tensor,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    q_weight_H: Tensor,
    k_weight_H: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    eps: float,
    cast_before_weight: bool,
) -> tuple[Tensor, Tensor]:
    q_MNH, k_MKH, _ = _split(qkv_MC, num_heads, num_kv_heads)
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    rotated = []
    for x_MAH, weight_H in ((q_MNH, q_weight_H), (k_MKH, k_weight_H)):
        x_wide = x_MAH.to(cos_PR.dtype)
        normed = x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
        if cast_before_weight:
            normed = normed.to(x_MAH.dtype).to(cos_PR.dtype)
        normed = normed * weight_H.to(cos_PR.dtype)
        rotated.append(_rotate(normed, cos_M1R, sin_M1R).to(x_MAH.dtype))
    return rotated[0], rotated[1]


def _backward_body(
    grad_q_MNH: Tensor,
    grad_k_MKH: Tensor,
    grad_v_MKH: Tensor,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
) -> Tensor:
    """The gradient of a rotation is turned back: by the same angle with sin negated."""
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    grads = (_rotate(grad_q_MNH, cos_M1R, -sin_M1R), _rotate(grad_k_MKH, cos_M1R, -sin_M1R))
    return torch.cat((*grads, grad_v_MKH), dim=1).flatten(1)


def _norm_backward_body(
    grad_q_MNH: Tensor,
    grad_k_MKH: Tensor,
    grad_v_MKH: Tensor,
    qkv_MC: Tensor,
    positions_M: Tensor,
    cos_PR: Tensor,
    sin_PR: Tensor,
    q_weight_H: Tensor,
    k_weight_H: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn back, then the gradient of the norm (rms_norm.py) for each head."""
    wide = cos_PR.dtype
    q_MNH, k_MKH, _ = _split(qkv_MC, grad_q_MNH.shape[1], grad_k_MKH.shape[1])
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    grads, grad_weights = [], []
    for grad_MAH, x_MAH, weight_H in (
        (grad_q_MNH, q_MNH, q_weight_H),
        (grad_k_MKH, k_MKH, k_weight_H),
    ):
        turned = _rotate(grad_MAH.to(wide), cos_M1R, -sin_M1R)
        x_wide = x_MAH.to(wide)
        rstd = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
        normed, grad_normed = x_wide * rstd, turned * weight_H.to(wide)
        projection = (grad_normed * normed).mean(-1, keepdim=True)
        grads.append((rstd * (grad_normed - normed * projection)).to(x_MAH.dtype))
        grad_weights.append(sum_rows((turned * normed).sum(1)).to(weight_H.dtype))
    return torch.cat((*grads, grad_v_MKH), dim=1).flatten(1), grad_weights[0], grad_weights[1]


_forward = Form("rope_forward", _forward_body, num_row_tensors=2)
_norm_forward = Form("norm_rope_forward", _norm_forward_body, num_row_tensors=2)
_backward = Form("rope_backward", _backward_body, num_row_tensors=4)
_norm_backward = Form("norm_rope_backward", _norm_backward_body, num_row_tensors=5)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_MC, positions_M, cos_PR, sin_PR, num_heads, num_kv_heads):
        ctx.save_for_backward(positions_M, cos_PR, sin_PR)
        q_MNH, k_MKH = _forward(
            qkv_MC, positions_M, cos_PR, sin_PR, num_heads=num_heads, num_kv_heads=num_kv_heads
        )
        return q_MNH, k_MKH, _split(qkv_MC, num_heads, num_kv_heads)[2]

    @staticmethod
    def backward(ctx, grad_q_MNH, grad_k_MKH, grad_v_MKH):
        grad_qkv_MC = _backward(grad_q_MNH, grad_k_MKH, grad_v_MKH, *ctx.saved_tensors)
        return grad_qkv_MC, None, None, None, None, None


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, qkv_MC, positions_M, cos_PR, sin_PR, q_weight_H, k_weight_H, num_heads, num_kv_heads,
        eps, cast_before_weight,
    ):  # fmt: skip
        inputs = (qkv_MC, positions_M, cos_PR, sin_PR, q_weight_H, k_weight_H)
        ctx.save_for_backward(*inputs)
        ctx.eps = eps
        q_MNH, k_MKH = _norm_forward(
            *inputs, num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps,
            cast_before_weight=cast_before_weight,
        )  # fmt: skip
        return q_MNH, k_MKH, _split(qkv_MC, num_heads, num_kv_heads)[2]

    @staticmethod
    def backward(ctx, grad_q_MNH, grad_k_MKH, grad_v_MKH):
        grad_qkv_MC, grad_q_weight_H, grad_k_weight_H = _norm_backward(
            grad_q_MNH, grad_k_MKH, grad_v_MKH, *ctx.saved_tensors, eps=ctx.eps
        )
        none = (None,) * 3
        return grad_qkv_MC, *none, grad_q_weight_H, grad_k_weight_H, *none, None
