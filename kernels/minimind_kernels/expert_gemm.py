"""Computes the feed-forward layers of all experts, each over the tokens that were routed to it.

    out_t = Σ_s weights_ts · down_e(silu(gate_e x_t) · up_e x_t),   e = experts_ts

Token slots are sorted by expert, so that each expert's products run over contiguous rows (Gale et
al., "MegaBlocks", 2022). P = M·S is the number of all slots, N the number of one expert's slots,
and G = 2F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from . import backend
from .expert_rows import divide_rows
from .form import Form
from .moe_routing import moe_routing_reference
from .op import BOTH, Case, Function, Goal, Inputs, Op, Registers, Rival
from .routing import Routing, build_options
from .swiglu import swiglu_forward, swiglu_reference


def expert_ffn_reference(
    x_MD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, routing: Routing
) -> Tensor:
    """Computes the formula in PyTorch: every expert over every token, with a weight of 0 for
    most."""
    experts_MS, weights_MS = routing.experts_MS.long(), routing.weights_MS
    weights_ME = weights_MS.new_zeros(len(x_MD), len(down_EDF))
    weights_ME = weights_ME.scatter_add(1, experts_MS, weights_MS)
    wide = torch.promote_types(x_MD.dtype, torch.float32)
    out_MD = torch.zeros_like(x_MD, dtype=wide)
    for expert, (gate_up_GD, down_DF) in enumerate(zip(gate_up_EGD, down_EDF, strict=True)):
        hidden_MF = swiglu_reference(functional.linear(x_MD, gate_up_GD))
        y_MD = functional.linear(hidden_MF, down_DF)
        out_MD = out_MD + weights_ME[:, expert : expert + 1] * y_MD
    return out_MD.to(x_MD.dtype)


def expert_ffn(x_MD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, routing: Routing) -> Tensor:
    """Runs each token through its experts, and sums the results by their weights: out_MD in x's
    dtype.

    x_MD [M, D], gate_up_EGD [E, 2F, D] (an expert's gate rows, then its up rows) and down_EDF [E,
    D, F] are of one dtype, fp32, fp16 or bf16. The products run in that dtype with fp32 sums;
    activation and weighting run in fp32. It is differentiable in x, both weights and
    routing.weights_MS; an expert without tokens gets a gradient of zeros. For the backward pass
    gate_up's product is kept; the activation is rebuilt.

    On a CPU the counts are read and each expert's rows are multiplied separately; a Triton grid is
    as large as the worst case, so that nothing waits for a GPU.

    Raises ValueError where shapes or dtypes do not agree.
    """
    _check(x_MD, gate_up_EGD, down_EDF, routing)
    if backend.inlines("expert_ffn", x_MD):
        return expert_ffn_reference(x_MD, gate_up_EGD, down_EDF, routing)
    tensors = (x_MD, routing.weights_MS, routing.order_P, routing.offsets_E1, gate_up_EGD, down_EDF)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _ExpertFFN.apply(*tensors)
    return _forward(*tensors, generated=False, keep=False)[0]


def _check(x_MD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, routing: Routing) -> None:
    shapes = (x_MD.shape, gate_up_EGD.shape, down_EDF.shape)
    dtypes = {x_MD.dtype, gate_up_EGD.dtype, down_EDF.dtype}
    if tuple(map(len, shapes)) == (2, 3, 3) and len(dtypes) == 1:
        num_experts, hidden, ffn = down_EDF.shape
        if (
            x_MD.shape[1] == hidden
            and gate_up_EGD.shape == (num_experts, 2 * ffn, hidden)
            and routing.offsets_E1.shape == (num_experts + 1,)
            and routing.experts_MS.shape[0] == x_MD.shape[0]
        ):
            return
    raise ValueError(
        "expert_ffn takes x [M, D], gate_up [E, 2F, D] and down [E, D, F] of one dtype and the "
        f"routing of M tokens over E experts, not {', '.join(str(tuple(s)) for s in shapes)} of "
        f"{', '.join(sorted(map(str, dtypes)))} and a routing of {len(routing.experts_MS)} tokens "
        f"over {len(routing.counts_E)} experts"
    )


def _forward_body(
    x_MD: Tensor, weights_MS: Tensor, order_P: Tensor, offsets_E1: Tensor, gate_up_EGD: Tensor,
    down_EDF: Tensor, *, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gives the result and, with `keep`, gate_up's product for the backward pass: [P, 2F] rows
    with each expert's rows of padding among them.

    It runs one expert at a time: the tensors between the products are then small enough to reuse
    memory that is mapped and cached. New large buffers would add a tenth to the products' time.
    """
    num_slots, parts = weights_MS.shape[1], divide_rows(order_P, offsets_E1, gate_up_EGD)
    # Fake tensors have no values, so their offsets do not give the number of slots.
    kept_rows = max(parts[-1].kept.stop, len(order_P)) if keep else 0
    gate_up_PG = x_MD.new_empty(kept_rows, gate_up_EGD.shape[1])
    y_PD = x_MD.new_empty(len(order_P), x_MD.shape[1])
    for expert, slots_L, slots_N, kept, generated in parts:
        if not len(slots_N):
            continue
        x_LD = x_MD.index_select(0, slots_L // num_slots)
        product_LG = torch.mm(x_LD, gate_up_EGD[expert].t(), out=gate_up_PG[kept] if keep else None)
        hidden_LF = swiglu_forward(product_LG, generated=generated)
        y_LD = torch.mm(hidden_LF, down_EDF[expert].t())
        y_PD.index_copy_(0, slots_N, y_LD[: len(slots_N)])
    return _sum_of_slots(y_PD, num_slots, weights_MS), gate_up_PG


def _backward_body(
    grad_out_MD: Tensor, x_MD: Tensor, weights_MS: Tensor, order_P: Tensor, offsets_E1: Tensor,
    gate_up_EGD: Tensor, down_EDF: Tensor, gate_up_PG: Tensor, *, grad_of_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gives the gradients of x, the routing weights, gate_up and down; without `grad_of_experts`
    the last two are empty."""
    num_slots = weights_MS.shape[1]
    grad_x_PD = x_MD.new_empty(len(order_P), x_MD.shape[1])
    weights_P1 = weights_MS.reshape(-1, 1)
    grad_weights_P = torch.empty_like(weights_P1[:, 0])
    grad_gate_up_EGD = grad_down_EDF = x_MD.new_empty(0)
    if grad_of_experts:
        grad_gate_up_EGD, grad_down_EDF = map(torch.empty_like, (gate_up_EGD, down_EDF))
    for expert, slots_L, slots_N, kept, generated in divide_rows(order_P, offsets_E1, gate_up_EGD):
        num_rows, tokens_L = len(slots_N), slots_L // num_slots
        grad_LD = grad_out_MD.index_select(0, tokens_L)
        grad_gate_up_LG, hidden_LF, grad_weights_L = _activation_grad(
            torch.mm(grad_LD, down_EDF[expert]), gate_up_PG[kept], weights_P1[slots_L],
            generated=generated,
        )  # fmt: skip
        grad_weights_P[slots_N] = grad_weights_L[:num_rows]
        grad_x_LD = torch.mm(grad_gate_up_LG, gate_up_EGD[expert])
        grad_x_PD.index_copy_(0, slots_N, grad_x_LD[:num_rows])
        if grad_of_experts:  # A product over no rows is zero.
            x_ND = x_MD.index_select(0, tokens_L[:num_rows])
            torch.mm(grad_gate_up_LG[:num_rows].t(), x_ND, out=grad_gate_up_EGD[expert])
            torch.mm(grad_LD[:num_rows].t(), hidden_LF[:num_rows], out=grad_down_EDF[expert])
    return (
        _sum_of_slots(grad_x_PD, num_slots),
        grad_weights_P.view_as(weights_MS),
        grad_gate_up_EGD,
        grad_down_EDF,
    )


def _sum_of_slots(y_PD: Tensor, num_slots: int, weights_MS: Tensor | None = None) -> Tensor:
    """Sums over each token's slots, weighted if `weights` are given, and casts once; y may be
    overwritten."""
    if num_slots == 1:
        return y_PD if weights_MS is None else y_PD.mul_(weights_MS)
    y_MSD = y_PD.view(-1, num_slots, y_PD.shape[1])
    if weights_MS is None:
        return y_MSD.sum(dim=1)
    sum_MD = y_MSD[:, 0] * weights_MS[:, :1]
    for slot in range(1, num_slots):
        sum_MD += y_MSD[:, slot] * weights_MS[:, slot : slot + 1]
    return sum_MD.to(y_PD.dtype)


def _activation_grad_body(
    grad_hidden_NF: Tensor, gate_up_NG: Tensor, weights_N1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives, from the gradient of an expert's hidden values before its weight: the gradient of gate
    and up, the hidden values times the weight, and the gradient of the weight."""
    narrow, wide = gate_up_NG.dtype, weights_N1.dtype
    grad, (gate, up) = grad_hidden_NF.to(wide), gate_up_NG.to(wide).chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    hidden = silu * up
    grad_weights_N = (grad * hidden).sum(dim=1)
    grad = grad * weights_N1
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    grad_gate_up_NG = torch.cat((grad_gate.to(narrow), (grad * silu).to(narrow)), dim=1)
    return grad_gate_up_NG, (hidden * weights_N1).to(narrow), grad_weights_N


def _forward_fake(x_MD, weights_MS, order_P, offsets_E1, gate_up_EGD, down_EDF, *, keep):
    return x_MD.new_empty(x_MD.shape), x_MD.new_empty(len(order_P) * keep, gate_up_EGD.shape[1])


def _backward_fake(
    grad_out_MD, x_MD, weights_MS, order_P, offsets_E1, gate_up_EGD, down_EDF, gate_up_PG, *,
    grad_of_experts,
):  # fmt: skip
    of_experts = (gate_up_EGD, down_EDF) if grad_of_experts else (x_MD.new_empty(0),) * 2
    return tuple(t.new_empty(t.shape) for t in (x_MD, weights_MS, *of_experts))


_activation_grad = Form(None, _activation_grad_body, num_row_tensors=3)
_forward = Form(
    "expert_gemm:expert_ffn_forward", _forward_body, num_row_tensors=3, has_products=True,
    fake=_forward_fake,
)  # fmt: skip
_backward = Form(
    "expert_gemm:expert_ffn_backward", _backward_body, num_row_tensors=4, has_products=True,
    fake=_backward_fake,
)  # fmt: skip


class _ExpertFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_MD, weights_MS, order_P, offsets_E1, gate_up_EGD, down_EDF):
        tensors = (x_MD, weights_MS, order_P, offsets_E1, gate_up_EGD, down_EDF)
        out_MD, gate_up_PG = _forward(*tensors, generated=False, keep=True)
        ctx.save_for_backward(*tensors, gate_up_PG)
        return out_MD

    @staticmethod
    def backward(ctx, grad_out_MD):
        of_experts = any(ctx.needs_input_grad[4:])
        grad_x_MD, grad_weights_MS, grad_gate_up_EGD, grad_down_EDF = _backward(
            grad_out_MD, *ctx.saved_tensors, generated=False, grad_of_experts=of_experts
        )
        grads_of_experts = (grad_gate_up_EGD, grad_down_EDF) if of_experts else (None, None)
        return grad_x_MD, grad_weights_MS, None, None, *grads_of_experts


def _grouped_products(x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """Computes the reference's result by PyTorch's own grouped products, which wait for nothing."""
    order, ends = routing.order_P.long(), routing.offsets_E1[1:]
    tokens = order // routing.weights_MS.shape[1]
    product = functional.grouped_mm(x[tokens], gate_up.transpose(1, 2), offs=ends)
    y = functional.grouped_mm(swiglu_reference(product), down.transpose(1, 2), offs=ends)
    weighted = y * routing.weights_MS.flatten()[order].unsqueeze(1)
    return torch.zeros_like(x).index_add(0, tokens, weighted.to(x.dtype))


def _build(inputs: Inputs) -> Case:
    sizes, hidden, ffn = inputs.sizes, inputs.sizes.hidden, inputs.sizes.ffn
    num_experts, num_slots = sizes.experts, inputs.tokens * sizes.experts_per_token
    options = build_options(inputs, counted=True)
    with torch.no_grad():
        routing = moe_routing_reference(inputs.rows(num_experts), **options)

    def run(op: Callable[..., Tensor]) -> Function:
        return lambda x, gate_up, down, weights: op(
            x, gate_up, down, replace(routing, weights_MS=weights)
        )

    row, kept = inputs.bytes_of(inputs.tokens, hidden), inputs.bytes_of(num_slots, 2 * ffn)
    weights, product = inputs.bytes_of(num_experts, 3 * ffn, hidden), 2 * num_slots * hidden * ffn
    tensors = (
        inputs.rows(hidden), inputs.matrix(num_experts, 2 * ffn, hidden),
        inputs.matrix(num_experts, hidden, ffn), routing.weights_MS.requires_grad_(),
    )  # fmt: skip
    return Case(
        "expert_ffn", sizes, run(expert_ffn), run(expert_ffn_reference), tensors,
        2 * row + kept + weights, 3 * row + kept + 2 * weights, 3 * product, 6 * product,
        quickest=run(_grouped_products),
        rivals=(Rival(  # sorts the tokens itself
            "liger", "liger_kernel.ops.fused_moe:LigerFusedMoEFunction",
            lambda apply: lambda *tensors: apply(*tensors[:3], routing.experts_MS, tensors[3]),
            waits=True,
        ),),
    )  # fmt: skip


EXPERT_FFN = Op(
    expert_ffn,
    expert_ffn_reference,
    "Σ_s w_s · down_e(silu(gate_e x) · up_e x)",
    _build,
    tested={
        "tokens hidden ffn experts experts_per_token": (
            (1, 8, 4, 2, 1), (0, 8, 4, 4, 2), (37, 12, 20, 5, 2), (45, 40, 33, 4, 1),
            (6, 24, 18, 12, 8),
        )
    },
    compiled_for=("E/S {experts}/{experts_per_token}", "D/F {hidden}/{ffn}"),
    needs_experts=True,
    forms=(_forward, _backward),
    tiles=(
        "expert_up", "expert_to_slots", "expert_slot_sum", "expert_activation_grad",
        "expert_weight_grad",
    ),
    registers={
        "expert_gemm.up": Registers(146, 146, 157, 116, 184),
        "expert_to_slots.to_slots": Registers(167, 167, 128, 120, 226),
        "expert_to_slots.sum_slots": Registers(32, 40, 32, 32, 44),
        "expert_gemm.activation_grad": Registers(128, 128, 255, 124, 148),
        "expert_weight_grad.weight_grad": Registers(128, 128, 122, 86, 180),
    },
    launches={"expert_ffn": {"minimind2-moe": 7, "minimind3-moe": 5}},
    goals=(Goal("expert_ffn", BOTH, {"minimind2-moe": 1631}),),  # 400 TFLOP/s
)  # fmt: skip
