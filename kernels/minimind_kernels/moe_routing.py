"""Chooses the experts of each token and their weights, and computes the loss that keeps experts
in use.

    p = softmax(logits),   experts_t = the S largest of p_t,   weights_ts = p_te / Σ_s p_te

and the experts' load, the order of tokens by expert, and the auxiliary loss: over all tokens
E · Σ_e (share of tokens that chose e) · mean(p_e) (Fedus et al., "Switch Transformers", 2021,
summed over the S choices), or the same within each document, averaged over documents (Dai et al.,
"DeepSeekMoE", 2024).

P is the number of token slots, M·S. X is the number of documents, or 1 where all tokens count as
one document.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import backend
from .form import Form
from .op import Case, Function, Goal, Inputs, Op, Registers
from .routing import Routing, build_options

MAX_EXPERTS = 256
MAX_EXPERTS_PER_TOKEN = 8
_EPS = 1e-20
"""Added to the sum by which the weights are divided."""
_NUM_RESULTS = 7


def moe_routing_reference(
    logits_ME: Tensor,
    num_experts_per_tok: int,
    *,
    norm_topk_prob: bool,
    is_counted_M: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seq_aux: bool = False,
) -> Routing:
    """Computes the formula in PyTorch. fp64 is computed in fp64, everything narrower in fp32."""
    results = _forward_body(
        logits_ME, is_counted_M, cu_seqlens if seq_aux else None,
        num_experts_per_tok=num_experts_per_tok, norm_topk_prob=norm_topk_prob, eps=_EPS,
    )  # fmt: skip
    return Routing(*results[:_NUM_RESULTS])


def moe_routing(
    logits_ME: Tensor,
    num_experts_per_tok: int,
    *,
    norm_topk_prob: bool,
    is_counted_M: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seq_aux: bool = False,
) -> Routing:
    """Chooses S = `num_experts_per_tok` experts for each token.

    logits_ME [M, E] is fp32, fp16 or bf16; S is from 1 to 8, E from 2 to 256. The softmax and all
    sums run in fp32. Of equal logits the expert with the lower number is chosen. With
    `norm_topk_prob` a token's weights are divided by their sum + 1e-20: with S = 1 they are then
    exactly 1 and give no gradient to the logits.

    is_counted_M [M] bool (default: all) says over which tokens the mean of p and the auxiliary loss
    are taken. The others, padding, are still routed, so that shapes are static. The auxiliary loss
    is over all counted tokens at once or, with `seq_aux`, the mean over the documents that have
    counted tokens; cu_seqlens [documents + 1] int32 then says where each document starts in the M
    tokens, with M at its end. On a GPU nothing waits for the host.

    Raises ValueError where S, E or a shape is out of range, or `seq_aux` comes without
    cu_seqlens.
    """
    _check(logits_ME, num_experts_per_tok, is_counted_M, cu_seqlens, seq_aux)
    if backend.inlines("moe_routing", logits_ME):
        return moe_routing_reference(
            logits_ME, num_experts_per_tok, norm_topk_prob=norm_topk_prob,
            is_counted_M=is_counted_M, cu_seqlens=cu_seqlens, seq_aux=seq_aux,
        )  # fmt: skip
    documents = cu_seqlens if seq_aux else None
    return Routing(
        *_MoERouting.apply(logits_ME, is_counted_M, documents, num_experts_per_tok, norm_topk_prob)
    )


def _check(
    logits_ME: Tensor,
    num_experts_per_tok: int,
    is_counted_M: Tensor | None,
    cu_seqlens: Tensor | None,
    seq_aux: bool,
) -> None:
    if logits_ME.ndim != 2 or not 2 <= logits_ME.shape[1] <= MAX_EXPERTS:
        raise ValueError(
            f"moe_routing takes logits [M, E] with E from 2 to {MAX_EXPERTS}, "
            f"not {tuple(logits_ME.shape)}"
        )
    most = min(MAX_EXPERTS_PER_TOKEN, logits_ME.shape[1])
    if not 1 <= num_experts_per_tok <= most:
        raise ValueError(
            f"a token goes to 1 to {most} of {logits_ME.shape[1]} experts, "
            f"not to {num_experts_per_tok}"
        )
    if is_counted_M is not None and is_counted_M.shape != logits_ME.shape[:1]:
        raise ValueError(
            f"is_counted is {tuple(logits_ME.shape[:1])} for logits "
            f"{tuple(logits_ME.shape)}, not {tuple(is_counted_M.shape)}"
        )
    if seq_aux and cu_seqlens is None:
        raise ValueError("seq_aux=True takes the auxiliary loss by document; give cu_seqlens")


def _forward_body(
    logits_ME: Tensor,
    is_counted_M: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gives the fields of Routing, then three values for the backward pass of the auxiliary loss:
    document_M int32 [M], the row of each token in slope_XE, -1 where it does not count; slope_XE,
    the loss's derivative by p; and one over the number of counted tokens [1]."""
    num_tokens, num_experts = logits_ME.shape
    probs_ME = _softmax(logits_ME)
    # Chosen by the logits: different logits can have the same rounded probability.
    experts_MS = logits_ME.sort(dim=1, descending=True, stable=True).indices
    experts_MS = experts_MS[:, :num_experts_per_tok].contiguous()
    weights_MS = probs_ME.gather(1, experts_MS)
    if norm_topk_prob:
        weights_MS = weights_MS / (weights_MS.sum(dim=1, keepdim=True) + eps)

    chosen_ME = torch.zeros_like(logits_ME, dtype=torch.int32).scatter(1, experts_MS, 1)
    counts_E = chosen_ME.sum(dim=0, dtype=torch.int32)
    offsets_E1 = torch.cat((counts_E.new_zeros(1), counts_E.cumsum(0, dtype=torch.int32)))
    order_P = experts_MS.flatten().argsort(stable=True).to(torch.int32)

    document_M = _documents(num_tokens, is_counted_M, cu_seqlens, logits_ME)
    num_documents = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    ones_M = torch.ones(num_tokens, dtype=probs_ME.dtype, device=probs_ME.device)
    sizes_X, loads_XE, sums_XE = (
        _sum_by_document(values, document_M, num_documents)
        for values in (ones_M, chosen_ME.to(probs_ME.dtype), probs_ME)
    )
    divisor_X1 = sizes_X.clamp(min=1).unsqueeze(1)
    num_counted_1 = sizes_X.sum().clamp(min=1).unsqueeze(0)
    num_filled = (sizes_X > 0).sum().clamp(min=1)
    # A document's shares are over its choices, all tokens' over the tokens (SPEC of both series).
    factor = num_experts if cu_seqlens is None else num_experts / num_experts_per_tok
    slope_XE = factor * loads_XE / divisor_X1 / divisor_X1 / num_filled
    return (
        weights_MS, experts_MS.to(torch.int32), counts_E, order_P, offsets_E1,
        sums_XE.sum(dim=0) / num_counted_1, (slope_XE * sums_XE).sum(),
        document_M, slope_XE, 1 / num_counted_1,
    )  # fmt: skip


def _backward_body(
    grad_weights_MS: Tensor,
    logits_ME: Tensor,
    experts_MS: Tensor,
    document_M: Tensor,
    slope_XE: Tensor,
    inverse_count_1: Tensor,
    grad_mean_E: Tensor | None,
    grad_aux: Tensor | None,
    *,
    norm_topk_prob: bool,
    eps: float,
) -> Tensor:
    """Gives the gradient of the logits, p·(dp - Σ p·dp) with p = softmax(logits), where dp is the
    gradient of p from all three results."""
    probs_ME, experts_MS = _softmax(logits_ME), experts_MS.long()
    grad_MS = grad_weights_MS
    if norm_topk_prob:
        weights_MS = probs_ME.gather(1, experts_MS)
        total_M1 = weights_MS.sum(dim=1, keepdim=True) + eps
        # One weight alone is exactly 1, and this exactly 0.
        projection_M1 = (grad_MS * (weights_MS / total_M1)).sum(dim=1, keepdim=True)
        grad_MS = (grad_MS - projection_M1) / total_M1
    grad_probs_ME = torch.zeros_like(probs_ME).scatter(1, experts_MS, grad_MS)
    grad_counted_ME = torch.zeros_like(probs_ME)
    if grad_aux is not None:
        grad_counted_ME = grad_aux * slope_XE.index_select(0, document_M.clamp(min=0))
    if grad_mean_E is not None:
        grad_counted_ME = grad_counted_ME + grad_mean_E * inverse_count_1
    is_counted_M1 = (document_M >= 0).unsqueeze(1)
    grad_probs_ME = grad_probs_ME + torch.where(is_counted_M1, grad_counted_ME, 0)
    projection_M1 = (grad_probs_ME * probs_ME).sum(dim=1, keepdim=True)
    return (probs_ME * (grad_probs_ME - projection_M1)).to(logits_ME.dtype)


def _softmax(logits_ME: Tensor) -> Tensor:
    return logits_ME.to(torch.promote_types(logits_ME.dtype, torch.float32)).softmax(dim=1)


def _documents(
    num_tokens: int, is_counted_M: Tensor | None, cu_seqlens: Tensor | None, like: Tensor
) -> Tensor:
    """Gives int32 [M]: the row of each token in a tensor [X, …], -1 where it does not count."""
    if cu_seqlens is None:
        document_M = torch.zeros(num_tokens, dtype=torch.int32, device=like.device)
    else:
        tokens_M = torch.arange(num_tokens, dtype=torch.int32, device=like.device)
        document_M = torch.searchsorted(cu_seqlens[1:], tokens_M, right=True, out_int32=True)
    return document_M if is_counted_M is None else document_M.masked_fill(~is_counted_M, -1)


def _sum_by_document(values: Tensor, document_M: Tensor, num_documents: int) -> Tensor:
    """Gives the sums [X, …] of values [M, …] over each document's counted tokens."""
    if num_documents == 1:
        is_counted = (document_M == 0).view(-1, *[1] * (values.ndim - 1))
        return torch.where(is_counted, values, 0).sum(dim=0, keepdim=True)
    # Tokens that do not count go to one more row.
    rows_M = torch.where(document_M < 0, num_documents, document_M)
    sums = values.new_zeros(num_documents + 1, *values.shape[1:])
    return sums.index_add(0, rows_M, values)[:-1]


_forward = Form("moe_routing:moe_routing_forward", _forward_body, num_row_tensors=1)
_backward = Form("moe_routing:moe_routing_backward", _backward_body, num_row_tensors=4)


class _MoERouting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_ME, is_counted_M, cu_seqlens, num_experts_per_tok, norm_topk_prob):
        results = _forward(
            logits_ME, is_counted_M, cu_seqlens, generated=False,
            num_experts_per_tok=num_experts_per_tok, norm_topk_prob=norm_topk_prob, eps=_EPS,
        )  # fmt: skip
        _, experts_MS, counts_E, order_P, offsets_E1, *_ = results
        ctx.save_for_backward(logits_ME, experts_MS, *results[_NUM_RESULTS:])
        ctx.mark_non_differentiable(experts_MS, counts_E, order_P, offsets_E1)
        ctx.set_materialize_grads(False)
        ctx.norm_topk_prob = norm_topk_prob
        return results[:_NUM_RESULTS]

    @staticmethod
    def backward(ctx, grad_weights_MS, *grads):
        grad_mean_E, grad_aux = grads[-2:]
        logits_ME, experts_MS, *of_loss = ctx.saved_tensors
        if grad_weights_MS is None:
            wide = torch.promote_types(logits_ME.dtype, torch.float32)
            grad_weights_MS = torch.zeros_like(experts_MS, dtype=wide)
        grad_logits_ME = _backward(
            grad_weights_MS, logits_ME, experts_MS, *of_loss, grad_mean_E, grad_aux,
            generated=False, norm_topk_prob=ctx.norm_topk_prob, eps=_EPS,
        )  # fmt: skip
        return grad_logits_ME, None, None, None, None


def _build(inputs: Inputs, *, counted: bool = True, mean: bool = False) -> Case:
    """Builds a case. With `mean` the mean of p is among the results."""
    sizes, tokens = inputs.sizes, inputs.tokens
    options = build_options(inputs, counted=counted)

    def run(op: Callable[..., Routing]) -> Function:
        def call(logits: Tensor) -> tuple[Tensor, ...]:
            routing = op(logits, **options)
            found = (routing.weights_MS, routing.aux_loss)
            return (*found, routing.probs_mean_E) if mean else found

        return call

    row, slots = inputs.bytes_of(sizes.experts), sizes.experts_per_token
    return Case(
        "moe_routing", sizes, run(moe_routing), run(moe_routing_reference),
        (inputs.rows(sizes.experts),), tokens * (row + slots * 12 + 4),
        tokens * (2 * row + slots * 8 + 4),
    )  # fmt: skip


_TESTED = ((1, 2, 1), (0, 4, 2), (37, 5, 2), (300, 4, 1), (85, 64, 8), (5, 256, 3))
MOE_ROUTING = Op(
    moe_routing,
    moe_routing_reference,
    "softmax, the largest S, E·Σ share·mean(p), order by expert",
    _build,
    tested={
        "tokens experts experts_per_token": _TESTED,
        "norm_topk_prob": (True, False),
        "counted seq_aux": ((False, False), (True, False), (True, True)),
        "mean": (True,),
    },
    compiled_for=("E/S {experts}/{experts_per_token}",),
    needs_experts=True,
    forms=(_forward, _backward),
    tiles=("moe_routing", "moe_order"),
    registers={
        "moe_routing.choose": Registers(56, 59, 56, 56, 40),
        "moe_routing.backward": Registers(59, 59, 60, 60, 24),
        "moe_order.order": Registers(128, 128, 128, 128, 50),
    },
    launches={"moe_routing": 3},
    goals=(Goal("moe_routing", ("forward",), {"minimind2-moe": 12}),),
)
