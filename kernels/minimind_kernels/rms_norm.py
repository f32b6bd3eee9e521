"""Computes root-mean-square normalisation, alone or after the residual addition.

    y = x / sqrt(mean(x², last dimension) + eps) · weight

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import backend
from .form import Form, as_rows, shaped, sum_rows
from .op import Case, Goal, Inputs, Op, Registers, Rival


def rms_norm_reference(
    x: Tensor, weight_D: Tensor, eps: float, cast_before_weight: bool = False
) -> Tensor:
    """Computes `rms_norm` in PyTorch: y in x's dtype. It computes in fp64 for an fp64 x, else in
    fp32; with `cast_before_weight`, the normed value is cast to x's dtype before the product with
    the weight."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide = x.to(wide)
    normed = x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    if cast_before_weight:
        normed = normed.to(x.dtype)
        return (normed * weight_D).to(x.dtype)
    return (normed * weight_D.to(wide)).to(x.dtype)


def add_rms_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight_D: Tensor,
    eps: float,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes the sum and its norm in PyTorch."""
    total = x + residual
    return total, rms_norm_reference(total, weight_D, eps, cast_before_weight)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, cast_before_weight: bool = False) -> Tensor:
    """Normalises the last dimension of x to a root mean square of one, times a weight.

    x [..., D] is fp32, fp16 or bf16; weight_D any of them; y [..., D] is in x's dtype. The
    statistics and, unless `cast_before_weight`, the product with the weight run in fp32 with one
    cast at the end (MiniMind 3). With `cast_before_weight` the normed value is cast first (Hugging
    Face's Llama and Qwen3, MiniMind 2). The weight's gradient is summed in fp32.

    Raises ValueError where weight_D is not [D].
    """
    _check(x, weight_D)
    if backend.inlines("rms_norm", x, weight_D):
        return rms_norm_reference(x, weight_D, eps, cast_before_weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad):
        return _RMSNorm.apply(x, weight_D, eps, cast_before_weight)
    # An autograd function costs some 12 µs more: for few rows, half as long again.
    _, y_MD, _ = _forward(
        as_rows(x), None, weight_D, eps=eps, cast_before_weight=cast_before_weight
    )
    return shaped(y_MD, x)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight_D: Tensor,
    eps: float,
    cast_before_weight: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds the residual and normalises the sum: (x + residual, rms_norm(x + residual)).

    x and residual [..., D] are of one dtype, in which the sum is rounded and returned; the norm is
    of the rounded sum. For the rest see `rms_norm`.

    Raises ValueError where the shapes or dtypes do not agree.
    """
    _check(x, weight_D)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            "add_rms_norm takes x and residual of one shape and dtype, not "
            f"{tuple(x.shape)} {x.dtype} and {tuple(residual.shape)} {residual.dtype}"
        )
    if backend.inlines("add_rms_norm", x, weight_D):
        return add_rms_norm_reference(x, residual, weight_D, eps, cast_before_weight)
    needs_grad = x.requires_grad or residual.requires_grad or weight_D.requires_grad
    if needs_grad and torch.is_grad_enabled():
        return _AddRMSNorm.apply(x, residual, weight_D, eps, cast_before_weight)
    total_MD, y_MD, _ = _forward(
        as_rows(x), as_rows(residual), weight_D, eps=eps, cast_before_weight=cast_before_weight
    )
    return shaped(total_MD, x), shaped(y_MD, x)


def _check(x: Tensor, weight_D: Tensor) -> None:
    shape = weight_D.shape
    if len(shape) != 1 or shape[0] != x.shape[-1]:
        raise ValueError(
            f"a norm over the last dimension of {tuple(x.shape)} takes a weight of "
            f"{tuple(x.shape[-1:])}, not {tuple(weight_D.shape)}"
        )


def _forward_body(
    x_MD: Tensor,
    residual_MD: Tensor | None,
    weight_D: Tensor,
    *,
    eps: float,
    cast_before_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives (x + residual, its norm, 1 / rms [M, 1]); without a residual, the first is empty."""
    total_MD = x_MD if residual_MD is None else x_MD + residual_MD
    y_MD, rstd_M1 = norm_forward(total_MD, weight_D, eps, cast_before_weight)
    total_MD = x_MD.new_empty(0) if residual_MD is None else total_MD
    return total_MD, y_MD.to(x_MD.dtype), rstd_M1


def _backward_body(
    grad_y_MD: Tensor,
    grad_total_MD: Tensor | None,
    x_MD: Tensor,
    rstd_M1: Tensor,
    weight_D: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gives the gradients of x and of the weight. `grad_total` is the gradient that reaches the sum
    x directly, not through the norm."""
    grad, shares = norm_backward(grad_y_MD, x_MD, rstd_M1, weight_D)
    if grad_total_MD is not None:
        grad = grad + grad_total_MD.to(grad.dtype)
    return grad.to(x_MD.dtype), sum_rows(shares).to(weight_D.dtype)


def norm_forward(
    x: Tensor, weight_D: Tensor, eps: float, cast_before_weight: bool
) -> tuple[Tensor, Tensor]:
    """Computes (x·rstd·w, rstd), in fp32 at least; x is [..., D], rstd [..., 1]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide = x.to(wide)
    rstd = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    normed = x_wide * rstd
    if cast_before_weight:
        normed = normed.to(x.dtype).to(wide)
    return normed * weight_D.to(wide), rstd


def norm_backward(
    grad_y: Tensor, x: Tensor, rstd: Tensor, weight_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes dx = rstd·(g - n·mean(g·n)) and each row's share dy·n of the weight's gradient, with
    n = x·rstd and g = dy·w; grad_y and x are [..., D], rstd [..., 1]. All runs in rstd's dtype."""
    wide = rstd.dtype
    grad_y, normed = grad_y.to(wide), x.to(wide) * rstd
    grad_normed = grad_y * weight_D.to(wide)
    projection = (grad_normed * normed).mean(-1, keepdim=True)
    return rstd * (grad_normed - normed * projection), grad_y * normed


_forward = Form("rms_norm:rms_norm_forward", _forward_body, num_row_tensors=2)
_backward = Form("rms_norm:rms_norm_backward", _backward_body, num_row_tensors=4)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_D, eps, cast_before_weight):
        x_MD = as_rows(x)
        _, y_MD, rstd_M1 = _forward(
            x_MD, None, weight_D, eps=eps, cast_before_weight=cast_before_weight
        )
        ctx.save_for_backward(x_MD, rstd_M1, weight_D)
        return shaped(y_MD, x)

    @staticmethod
    def backward(ctx, grad_y):
        grad_x_MD, grad_weight_D = _backward(as_rows(grad_y), None, *ctx.saved_tensors)
        return shaped(grad_x_MD, grad_y), grad_weight_D, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight_D, eps, cast_before_weight):
        total_MD, y_MD, rstd_M1 = _forward(
            as_rows(x), as_rows(residual), weight_D, eps=eps, cast_before_weight=cast_before_weight
        )
        total = shaped(total_MD, x)
        ctx.save_for_backward(total, rstd_M1, weight_D)
        return total, shaped(y_MD, x)

    @staticmethod
    def backward(ctx, grad_total, grad_y):
        total, rstd_M1, weight_D = ctx.saved_tensors
        grad_MD, grad_weight_D = _backward(
            as_rows(grad_y), as_rows(grad_total), as_rows(total), rstd_M1, weight_D
        )
        grad = shaped(grad_MD, grad_y)
        return grad, grad, grad_weight_D, None, None


def _build(inputs: Inputs) -> Case:
    sizes, hidden = inputs.sizes, inputs.sizes.hidden
    cast = sizes.cast_before_weight
    row = inputs.bytes_of(inputs.tokens, hidden)
    liger = partial(
        Rival, call=lambda apply: lambda x, w: apply(x, w, 1e-5, 0.0, _liger_mode(cast), False)
    )
    return Case(
        "rms_norm", sizes,
        lambda x, weight: rms_norm(x, weight, 1e-5, cast),
        lambda x, weight: rms_norm_reference(x, weight, 1e-5, cast),
        (inputs.rows(hidden), inputs.leaf(hidden)), 2 * row, 3 * row,
        rivals=(
            liger("liger", "liger_kernel.ops.rms_norm:LigerRMSNormFunction"),
            liger("liger-cute", "liger_kernel.ops.cutedsl.ops:LigerRMSNormFunction"),
            Rival("quack", "quack.rmsnorm:rmsnorm", lambda norm: lambda x, w: norm(x, w, eps=1e-5)),
        ),
    )  # fmt: skip


def _liger_mode(cast_before_weight: bool) -> str:
    """Names what Liger calls the order of the cast and the product with the weight."""
    return "llama" if cast_before_weight else "gemma"


def _build_add(inputs: Inputs) -> Case:
    sizes, hidden = inputs.sizes, inputs.sizes.hidden
    cast = sizes.cast_before_weight
    row = inputs.bytes_of(inputs.tokens, hidden)
    return Case(
        "add_rms_norm", sizes,
        lambda x, residual, weight: add_rms_norm(x, residual, weight, 1e-5, cast),
        lambda x, residual, weight: add_rms_norm_reference(x, residual, weight, 1e-5, cast),
        (inputs.rows(hidden), inputs.rows(hidden), inputs.leaf(hidden)), 4 * row, 4 * row,
        rivals=(
            Rival(
                "liger", "liger_kernel.ops.fused_add_rms_norm:LigerFusedAddRMSNormFunction",
                lambda apply: lambda *tensors: _sum_first(
                    apply(*tensors, 1e-5, 0.0, _liger_mode(cast), False)
                ),
            ),
            Rival(
                "quack", "quack.rmsnorm:rmsnorm",
                lambda norm: lambda x, residual, w: _sum_first(
                    norm(x, w, residual=residual, eps=1e-5, prenorm=True)
                ),
            ),
        ),
    )  # fmt: skip


def _sum_first(norm_and_sum: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return norm_and_sum[1], norm_and_sum[0]


_TESTED = {
    "tokens": (0, 1, 37),
    "hidden": (8, 24, 130, 512),
    "cast_before_weight": (False, True),
}
_SCALES = (1e-4, 1e3)
RMS_NORM = Op(
    rms_norm,
    rms_norm_reference,
    "x / rms(x) · w",
    _build,
    tested=_TESTED,
    scales=_SCALES,
    compiled_for=("D {hidden}",),
    forms=(_forward, _backward),
    registers={
        "rms_norm.forward": Registers(60, 48, 48, 48, 46),
        "rms_norm.backward": Registers(64, 111, 64, 64, 74),
        "column_sum.column_sum": Registers(96, 94, 96, 96, 137),
    },
    launches={"rms_norm": 3},
    goals=(Goal("rms_norm", ("forward",), {"minimind2-small": 11, "minimind2": 16}),),
)
ADD_RMS_NORM = Op(
    add_rms_norm,
    add_rms_norm_reference,
    "s = x + residual; s, s / rms(s) · w",
    _build_add,
    tested=_TESTED,
    scales=_SCALES,
    compiled_for=("D {hidden}",),
    tiles=("norm_forward", "norm_backward", "column_sum"),
    launches={"add_rms_norm": 3},
    goals=(
        Goal("add_rms_norm", ("forward",), {"minimind2-small": 20, "minimind2": 29}),
        Goal("add_rms_norm", ("backward",), {"minimind2-small": 22, "minimind2": 32}),
    ),
)
