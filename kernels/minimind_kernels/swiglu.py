"""Computes the gated activation of the feed-forward layer, alone and with the product after it.

    out = silu(gate) · up,  silu(g) = g · sigmoid(g)

Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import backend
from .form import Form, as_rows, shaped
from .op import Case, Goal, Inputs, Op, Registers, Rival


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """Computes the formula in PyTorch, each step in gate_up's dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def swiglu_linear_reference(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
    """Computes the formula in PyTorch, each step in gate_up's dtype."""
    return functional.linear(swiglu_reference(gate_up), weight_DF)


def swiglu(gate_up: Tensor) -> Tensor:
    """Computes silu(gate) · up of one packed product.

    gate_up [..., 2F] is fp32, fp16 or bf16: the gate in the first half of the last dimension, the
    value in the second; the result [..., F] is in its dtype. It runs in fp32 with one cast at the
    end. The backward pass rebuilds the activation, so that only gate_up is kept for it.

    Raises ValueError where the last dimension is odd.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(
            f"swiglu takes gate and up side by side in an even last dimension, "
            f"not {tuple(gate_up.shape)}"
        )
    if backend.inlines("swiglu", gate_up):
        return swiglu_reference(gate_up)
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return _SwiGLU.apply(gate_up)
    return shaped(swiglu_forward(as_rows(gate_up)), gate_up)


def swiglu_linear(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
    """Computes swiglu(gate_up) · weightᵀ: the part of a feed-forward layer after its packed
    product.

    gate_up [..., 2F] and weight_DF [D, F] are of one dtype, and so is the result [..., D]. For the
    backward pass only gate_up is kept: it is read there anyway, and the same pass over it gives the
    activation [..., F].

    Raises ValueError where the last dimension of gate_up is not 2F.
    """
    if gate_up.shape[-1] != 2 * weight_DF.shape[1]:
        raise ValueError(
            f"swiglu_linear with a weight of {tuple(weight_DF.shape)} takes gate and up side by "
            f"side, {2 * weight_DF.shape[1]} wide, not {tuple(gate_up.shape)}"
        )
    needs_grad = gate_up.requires_grad or weight_DF.requires_grad
    if not (torch.is_grad_enabled() and needs_grad) or backend.inlines("swiglu", gate_up):
        return functional.linear(swiglu(gate_up), weight_DF)
    return _SwiGLULinear.apply(gate_up, weight_DF)


def _forward_body(gate_up_M2F: Tensor) -> Tensor:
    gate_up = gate_up_M2F.to(torch.promote_types(gate_up_M2F.dtype, torch.float32))
    gate, up = gate_up.chunk(2, dim=-1)
    return (functional.silu(gate) * up).to(gate_up_M2F.dtype)


def _backward_body(
    grad_out_MF: Tensor, gate_up_M2F: Tensor, *, rebuild: bool
) -> tuple[Tensor, Tensor]:
    """Computes, with s = sigmoid(gate): d_gate = d·up·s·(1 + gate·(1 - s)), d_up = d·gate·s; and,
    with `rebuild`, the forward's result."""
    narrow, wide = gate_up_M2F.dtype, torch.promote_types(gate_up_M2F.dtype, torch.float32)
    grad, (gate, up) = grad_out_MF.to(wide), gate_up_M2F.to(wide).chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    grad_up = grad * gate * sigmoid
    # Cast before and not after: generated code writes both halves once, where it would keep them
    # in fp32 in between.
    grad_M2F = torch.cat((grad_gate.to(narrow), grad_up.to(narrow)), dim=-1)
    if not rebuild:
        return grad_M2F, gate_up_M2F.new_empty(0)
    return grad_M2F, (functional.silu(gate) * up).to(narrow)


swiglu_forward = Form("swiglu:swiglu_forward", _forward_body, num_row_tensors=1)
_backward = Form("swiglu:swiglu_backward", _backward_body, num_row_tensors=2)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        gate_up_M2F = as_rows(gate_up)
        ctx.save_for_backward(gate_up_M2F)
        return shaped(swiglu_forward(gate_up_M2F), gate_up)

    @staticmethod
    def backward(ctx, grad_out):
        grad_M2F, _ = _backward(as_rows(grad_out), *ctx.saved_tensors, rebuild=False)
        return shaped(grad_M2F, grad_out)


class _SwiGLULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, weight_DF):
        gate_up_M2F = as_rows(gate_up)
        ctx.save_for_backward(gate_up_M2F, weight_DF)
        return shaped(functional.linear(swiglu_forward(gate_up_M2F), weight_DF), gate_up)

    @staticmethod
    def backward(ctx, grad_out):
        gate_up_M2F, weight_DF = ctx.saved_tensors
        grad_out_MD, rebuild = as_rows(grad_out), ctx.needs_input_grad[1]
        grad_M2F, hidden_MF = _backward(grad_out_MD @ weight_DF, gate_up_M2F, rebuild=rebuild)
        grad_weight_DF = grad_out_MD.t() @ hidden_MF if rebuild else None
        return shaped(grad_M2F, grad_out), grad_weight_DF


def _build(inputs: Inputs) -> Case:
    row = inputs.bytes_of(inputs.tokens, inputs.sizes.ffn)
    return Case(
        "swiglu", inputs.sizes, swiglu, swiglu_reference, (inputs.rows(2 * inputs.sizes.ffn),),
        3 * row, 5 * row,
        rivals=(
            Rival("liger", "liger_kernel.ops.swiglu:LigerFusedGateUpSiLUMulFunction", lambda f: f),
            Rival(
                "liger-cute", "liger_kernel.ops.cutedsl.ops:LigerSiLUMulFunction", lambda f: f,
                lambda gate_up: tuple(half.contiguous() for half in gate_up.chunk(2, dim=-1)),
            ),
        ),
    )  # fmt: skip


def _build_linear(inputs: Inputs) -> Case:
    hidden, ffn = inputs.sizes.hidden, inputs.sizes.ffn
    row, ffn_row = (inputs.bytes_of(inputs.tokens, width) for width in (hidden, ffn))
    product = 2 * inputs.tokens * hidden * ffn
    return Case(
        "swiglu_linear", inputs.sizes, swiglu_linear, swiglu_linear_reference,
        (inputs.rows(2 * ffn), inputs.matrix(hidden, ffn)), 4 * ffn_row + row,
        8 * ffn_row + 2 * row, product, 2 * product,
    )  # fmt: skip


_TESTED = {"tokens": (0, 1, 37), "ffn": (1, 12, 65, 176)}
_SCALES = (1e-3, 30.0)
SWIGLU = Op(
    swiglu,
    swiglu_reference,
    "silu(gate) · up",
    _build,
    tested=_TESTED,
    scales=_SCALES,
    compiled_for=("F {ffn}",),
    forms=(swiglu_forward, _backward),
    tiles=("swiglu_forward", "swiglu_backward"),
    registers={
        "swiglu.forward": Registers(32, 40, 32, 32, 43),
        "swiglu.backward": Registers(64, 69, 68, 68, 87),
    },
    launches={"swiglu": 2},
    goals=(
        Goal("swiglu", ("forward",), {"minimind2-small": 38, "minimind2": 55}),
        Goal("swiglu", ("backward",), {"minimind2-small": 63, "minimind2": 92}),
    ),
)
SWIGLU_LINEAR = Op(
    swiglu_linear,
    swiglu_linear_reference,
    "(silu(gate) · up)·Wᵀ, the activation rebuilt for W's gradient",
    _build_linear,
    tested=_TESTED,
    scales=_SCALES,
    compiled_for=("F {ffn}",),
    launches={"swiglu_linear": 2},
)
