"""Computes rotary position embedding of queries and keys, with an optional RMSNorm of each head
before it.

With (a, b) the two halves of a head and angles θ of its position:

    a' = a·cos θ - b·sin θ,   b' = b·cos θ + a·sin θ

Su et al., "RoFormer", 2021, in the rotate-half layout of GPT-NeoX and Hugging Face's Llama; the
norm of queries and keys as in Qwen3 (Dehghani et al., "Scaling Vision Transformers to 22 Billion
Parameters", 2023).

P is the number of positions in the tables, C = (N + 2K)·H the width of the packed product: the N
query heads, then the K key heads, then the K value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import backend
from .form import Form, sum_rows
from .op import Case, Function, Goal, Inputs, Op, Registers, Rival
from .rms_norm import norm_backward, norm_forward, rms_norm_reference


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
    """Computes the formula in PyTorch; the rotation in fp32 (fp64 stays fp64)."""
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
    """Splits the packed QKV product and rotates its queries and keys: (q_MNH, k_MKH, v_MKH).

    qkv_MC [M, (N + 2K)·H] is fp32, fp16 or bf16; cos_PR and sin_PR [P, H/2] are fp32, one angle for
    each pair of dimensions i and i + H/2; positions_M [M] is int32 or int64, each below P: in
    Triton, q and k of any other are NaN. q and k are new and contiguous, v is a view of qkv, all in
    its dtype. With both norm weights [H] given, each head of q and k is normalised first (see
    `rms_norm` for eps and the order of the cast). Norm and rotation run in fp32 with one cast at
    the end, except for the cast that `cast_before_weight` asks for. The gradient of qkv is one
    packed tensor.

    Raises ValueError where shapes do not agree or one norm weight comes without the other.
    """
    _check(
        qkv_MC, cos_PR, sin_PR, positions_M, num_heads, num_kv_heads, q_norm_weight_H,
        k_norm_weight_H,
    )  # fmt: skip
    if backend.inlines("qk_rope", qkv_MC):
        return qk_rope_reference(
            qkv_MC, cos_PR, sin_PR, positions_M, num_heads, num_kv_heads, q_norm_weight_H,
            k_norm_weight_H, eps, cast_before_weight,
        )  # fmt: skip
    return _Rope.apply(
        qkv_MC, positions_M, cos_PR, sin_PR, q_norm_weight_H, k_norm_weight_H, num_heads,
        num_kv_heads, eps, cast_before_weight,
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
    if (q_norm_weight_H is None) != (k_norm_weight_H is None):
        raise ValueError("qk_rope normalises both q and k or neither: give both weights or none")
    if any(w is not None and w.shape != (head_size,) for w in (q_norm_weight_H, k_norm_weight_H)):
        raise ValueError(f"qk_rope takes norm weights of [{head_size}], the head size")


def _rotate(x_MAH: Tensor, cos_M1R: Tensor, sin_M1R: Tensor) -> Tensor:
    """Rotates each head, in the wider of x's and the tables' dtypes, and casts back to x's."""
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
    q_weight_H: Tensor | None,
    k_weight_H: Tensor | None,
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
        if weight_H is None:
            rotated.append(_rotate(x_MAH, cos_M1R, sin_M1R))
            continue
        normed, _ = norm_forward(x_MAH, weight_H, eps, cast_before_weight)
        rotated.append(_rotate(normed, cos_M1R, sin_M1R).to(x_MAH.dtype))
    return rotated[0], rotated[1]


def _backward_body(
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
    """Gives the gradients of qkv and of both weights [2H], the latter empty without a norm. The
    gradient of a rotation is rotated back, by the same angle with sin negated."""
    wide = cos_PR.dtype
    cos_M1R, sin_M1R = cos_PR[positions_M].unsqueeze(1), sin_PR[positions_M].unsqueeze(1)
    if qkv_MC is None or q_weight_H is None or k_weight_H is None:
        grads = (_rotate(grad, cos_M1R, -sin_M1R) for grad in (grad_q_MNH, grad_k_MKH))
        return torch.cat((*grads, grad_v_MKH), dim=1).flatten(1), grad_v_MKH.new_empty(0)
    q_MNH, k_MKH, _ = _split(qkv_MC, grad_q_MNH.shape[1], grad_k_MKH.shape[1])
    grads, grad_weights = [], []
    for grad_MAH, x_MAH, weight_H in (
        (grad_q_MNH, q_MNH, q_weight_H),
        (grad_k_MKH, k_MKH, k_weight_H),
    ):
        turned = _rotate(grad_MAH.to(wide), cos_M1R, -sin_M1R)
        rstd_MA1 = torch.rsqrt(x_MAH.to(wide).square().mean(-1, keepdim=True) + eps)
        grad_MAH, shares_MAH = norm_backward(turned, x_MAH, rstd_MA1, weight_H)
        grads.append(grad_MAH.to(x_MAH.dtype))
        grad_weights.append(sum_rows(shares_MAH.sum(1)).to(weight_H.dtype))
    return torch.cat((*grads, grad_v_MKH), dim=1).flatten(1), torch.cat(grad_weights)


_forward = Form("rope:rope_forward", _forward_body, num_row_tensors=2)
_backward = Form("rope:rope_backward", _backward_body, num_row_tensors=5)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, qkv_MC, positions_M, cos_PR, sin_PR, q_weight_H, k_weight_H, num_heads, num_kv_heads,
        eps, cast_before_weight,
    ):  # fmt: skip
        inputs = (qkv_MC, positions_M, cos_PR, sin_PR, q_weight_H, k_weight_H)
        # The backward of a rotation alone does not need the rotation's input.
        ctx.save_for_backward(None if q_weight_H is None else qkv_MC, *inputs[1:])
        ctx.eps = eps
        q_MNH, k_MKH = _forward(
            *inputs, num_heads=num_heads, num_kv_heads=num_kv_heads, eps=eps,
            cast_before_weight=cast_before_weight,
        )  # fmt: skip
        size = num_kv_heads * k_MKH.shape[2]
        return q_MNH, k_MKH, qkv_MC.narrow(1, qkv_MC.shape[1] - size, size).view(k_MKH.shape)

    @staticmethod
    def backward(ctx, grad_q_MNH, grad_k_MKH, grad_v_MKH):
        grad_qkv_MC, grads_2H = _backward(
            grad_q_MNH, grad_k_MKH, grad_v_MKH, *ctx.saved_tensors, eps=ctx.eps
        )
        # Two separate tensors: each becomes a parameter's gradient.
        halves_H = (half_H.clone() for half_H in grads_2H.chunk(2))
        grad_weights = halves_H if len(grads_2H) else (None, None)
        return grad_qkv_MC, None, None, None, *grad_weights, None, None, None, None


def _build(inputs: Inputs) -> Case:
    """Builds a case, with the norm where the sizes have it."""
    sizes, tokens, head_size = inputs.sizes, inputs.tokens, inputs.sizes.head_size
    num_heads, num_kv_heads = sizes.heads, sizes.kv_heads
    angles = inputs.arange(1024)[:, None] * 1e6 ** (-inputs.arange(0, head_size, 2) / head_size)
    positions = inputs.arange(tokens).flip(0) % 1024

    def run(op: Callable[..., tuple[Tensor, ...]]) -> Function:
        def call(qkv: Tensor, *norms: Tensor) -> tuple[Tensor, ...]:
            wide = torch.promote_types(qkv.dtype, torch.float32)
            tables = cos.to(wide), sin.to(wide), positions
            return op(qkv, *tables, num_heads, num_kv_heads, *norms, **options)

        return call

    cos, sin, options = angles.cos(), angles.sin(), {"cast_before_weight": sizes.cast_before_weight}
    row = inputs.bytes_of(tokens, head_size)
    rotated, values = row * (num_heads + num_kv_heads), row * num_kv_heads
    qkv = inputs.rows((num_heads + 2 * num_kv_heads) * head_size)
    norms = tuple(inputs.leaf(head_size) for _ in range(2 * sizes.qk_norm))

    def unpacked(qkv: Tensor) -> tuple[Tensor, ...]:
        """Gives q, k and v of one sequence, each [1, M, heads, H] and contiguous."""
        return tuple(heads[None].clone() for heads in _split(qkv, num_heads, num_kv_heads))

    def by_liger(apply: Callable[..., Any]) -> Function:  # in place
        rows = [t[positions].to(qkv.dtype).repeat(1, 2)[None] for t in (cos, sin)]
        swap = partial(torch.transpose, dim0=-3, dim1=-2)
        return lambda q, k, v: (*(swap(x)[0] for x in apply(swap(q), swap(k), *rows)), v[0])

    def by_quack(rotate: Callable[..., Tensor]) -> Function:
        rows = cos[positions], sin[positions]
        return lambda q, k, v: (rotate(q, *rows)[0], rotate(k, *rows)[0], v[0])

    rope, cute = (f"liger_kernel.ops.{x}:LigerRopeFunction" for x in ("rope", "cutedsl.ops"))
    rivals = (
        Rival("liger", rope, by_liger, unpacked),
        Rival("liger-cute", cute, by_liger, unpacked),
        Rival("quack", "quack.rotary:apply_rotary_emb", by_quack, unpacked),
    )
    return Case(
        "qk_norm_rope" if norms else "rope", sizes, run(qk_rope), run(qk_rope_reference),
        (qkv, *norms), 2 * rotated, (3 if norms else 2) * rotated + 2 * values,
        rivals=() if norms else rivals,
    )  # fmt: skip


QK_ROPE = Op(
    qk_rope,
    qk_rope_reference,
    "split QKV, norm q and k by head (optional), rotate them",
    _build,
    tested={
        "tokens": (0, 1, 61),
        "heads kv_heads head_size": ((1, 1, 2), (8, 2, 64), (3, 1, 80), (4, 4, 96), (1, 1, 128)),
        "qk_norm cast_before_weight": ((False, False), (True, False), (True, True)),
    },
    compiled_for=("N/K/H {heads}/{kv_heads}/{head_size}",),
    forms=(_forward, _backward),
    tiles=("rope_forward", "rope_backward", "norm_rope_backward"),
    registers={
        "rope.forward": Registers(64, 64, 56, 56, 72),
        "rope.backward": Registers(96, 103, 96, 102, 120),
    },
    launches={"rope": 2, "qk_norm_rope": 3},
    goals=(
        Goal("rope", ("forward",), {"minimind2-small": 13, "minimind2": 19}),
        # The goals' share of their floors, with four key heads and the gradient of v in them.
        Goal("qk_norm_rope", ("forward",), {"minimind3": 24}),
        Goal("qk_norm_rope", ("backward",), {"minimind3": 43}),
    ),
)
