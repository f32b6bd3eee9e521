"""Stands in for the libraries that kernels are measured beside: functions of the same names and
parameters, in plain PyTorch. test_rivals.py compares their parameters with the installed packages.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from minimind_kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from minimind_kernels.rope import _rotate
from minimind_kernels.swiglu import swiglu_reference
from torch import Tensor
from torch.nn import functional as F


def rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
    return rms_norm_reference(X, W, eps, casting_mode == "llama")


def fused_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
    total, y = add_rms_norm_reference(X, R, W, eps, casting_mode == "llama")
    return y, total


def rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    half = cos.shape[-1] // 2
    tables = cos[:, None, :, :half].float(), sin[:, None, :, :half].float()
    return _rotate(q, *tables), _rotate(k, *tables)


def fused_gate_up(y, in_place=False):
    return swiglu_reference(y)


def silu_mul(a, b, gate_multiplier: float = 1.0, down_multiplier: float = 1.0):
    assert a.is_contiguous()
    assert b.is_contiguous()
    return F.silu(a) * b


def linear_cross_entropy(
    _input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
    label_smoothing=0.0, reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None,
    use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False,
):  # fmt: skip
    assert accum_dtype == torch.float32
    return _cross_entropy(_input, weight, target, ignore_index, reduction), None, None, None


def linear_cross_entropy_sm90(
    _input, weight, target, ignore_index=-100, reduction="mean", bias=None, ce_weight=None,
    label_smoothing=0.0, softcap=None, lse_square_scale=0.0, use_token_scaling=False,
    return_z_loss=False, return_token_accuracy=False,
):  # fmt: skip
    return _cross_entropy(_input, weight, target, ignore_index, reduction)


def jsd(
    student_input, student_weight, teacher_input, teacher_weight, shift_labels=None, jsd_beta=0.5,
    ignore_index=-100, temperature=1.0, accum_dtype=None,
):  # fmt: skip
    assert (shift_labels, jsd_beta, accum_dtype) == (None, 0.0, torch.float32)
    student, teacher = (
        F.log_softmax(F.linear(x, w).float() / temperature, -1)
        for x, w in ((student_input, student_weight), (teacher_input, teacher_weight))
    )
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def fused_moe(x, gate_up_proj, down_proj, top_k_index, top_k_weights):
    out = torch.zeros_like(x)
    for expert, (gate_up, down) in enumerate(zip(gate_up_proj, down_proj, strict=True)):
        share_M1 = ((top_k_index == expert) * top_k_weights).sum(1, keepdim=True)
        out = out + (share_M1 * F.linear(swiglu_reference(F.linear(x, gate_up)), down)).to(x.dtype)
    return out


def rmsnorm(
    x, weight=None, bias=None, residual=None, out_dtype=None, residual_dtype=None, eps=1e-6,
    prenorm=False, weight_offset=0.0,
):  # fmt: skip
    if residual is None:
        return rms_norm_reference(x, weight, eps)
    total, y = add_rms_norm_reference(x, residual, weight, eps)
    return (y, total) if prenorm else y


def apply_rotary_emb(
    x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=None, cu_seqlens=None,
    max_seqlen=None,
):  # fmt: skip
    return _rotate(x, cos[None, :, None], sin[None, :, None])


def chunked_linear_cross_entropy(
    x, weight, target, chunk_size=4096, ignore_index=-100, reduction="mean", tuned=True,
    use_scaled_exp=None,
):  # fmt: skip
    assert reduction in ("mean", "sum")
    return _Once.apply(_cross_entropy(x, weight, target, ignore_index, reduction))


def linear_cross_entropy_func(
    x, weight, bias, target, ignore_index=-100, reduction="mean", inplace_backward=False
):
    return _cross_entropy(x, weight, target, ignore_index, reduction)


def cut_cross_entropy(
    e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False,
    filter_eps="high", impl=None,
):  # fmt: skip
    return _cross_entropy(e, c, targets, ignore_index, reduction)


def _cross_entropy(x: Tensor, weight: Tensor, target: Tensor, ignored: int, how: str) -> Tensor:
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits, target, ignore_index=ignored, reduction=how)


class _Once(torch.autograd.Function):
    """Overwrites in its backward what its forward kept, as QuACK's loss does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(x))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        return kept.mul_(grads[0]).clone()


_LIGER, _CUTE = "liger_kernel.ops", "liger_kernel.ops.cutedsl.ops"
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{_LIGER}.rms_norm:LigerRMSNormFunction": rms_norm,
    f"{_LIGER}.fused_add_rms_norm:LigerFusedAddRMSNormFunction": fused_add_rms_norm,
    f"{_LIGER}.rope:LigerRopeFunction": rope,
    f"{_LIGER}.swiglu:LigerFusedGateUpSiLUMulFunction": fused_gate_up,
    f"{_LIGER}.fused_linear_cross_entropy:LigerFusedLinearCrossEntropyFunction": (
        linear_cross_entropy
    ),
    f"{_LIGER}.fused_linear_jsd:LigerFusedLinearJSDFunction": jsd,
    f"{_LIGER}.fused_moe:LigerFusedMoEFunction": fused_moe,
    f"{_CUTE}:LigerRMSNormFunction": rms_norm,
    f"{_CUTE}:LigerRopeFunction": rope,
    f"{_CUTE}:LigerSiLUMulFunction": silu_mul,
    f"{_CUTE}:LigerFusedLinearCrossEntropySM90Function": linear_cross_entropy_sm90,
    "quack.rmsnorm:rmsnorm": rmsnorm,
    "quack.rotary:apply_rotary_emb": apply_rotary_emb,
    "quack.linear_cross_entropy:chunked_linear_cross_entropy": chunked_linear_cross_entropy,
    "quack.linear_cross_entropy:linear_cross_entropy_func": linear_cross_entropy_func,
    "cut_cross_entropy:linear_cross_entropy": cut_cross_entropy,
}
"""By the names that an `Op`'s rivals have."""


def import_module(name: str) -> types.SimpleNamespace:
    """Replaces importlib's for the modules of these libraries."""
    found = {
        function.partition(":")[2]: stand_in
        for function, stand_in in FUNCTIONS.items()
        if function.startswith(f"{name}:")
    }
    # An autograd function is called by its method `apply`.
    classes = {n: types.SimpleNamespace(apply=f) for n, f in found.items() if n.startswith("Liger")}
    return types.SimpleNamespace(**found | classes)
