"""Which experts each token goes to, with which weights, and the loss that keeps experts in use.

    p = softmax(logits),   experts_t = the S largest of p_t,   weights_ts = p_te / Σ_s p_te

and the experts' load, the order of tokens by expert, and the auxiliary loss: over all tokens
E · Σ_e (share of tokens that chose e) · mean(p_e) (Fedus et al., "Switch Transformers", 2021,
summed over the S choices), or the same within each document, averaged over documents (Dai et al.,
"DeepSeekMoE", 2024).

P is the number of token slots, M·S; X the number of documents, or 1 where all tokens are one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EXPERTS = 256
MAX_EXPERTS_PER_TOKEN = 8
_EPS = 1e-20
"""Added to the sum that renormalises."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The choice of experts for M tokens, ready for `expert_ffn`."""

    weights_MS: Tensor
    """fp32, differentiable."""
    experts_MS: Tensor
    """int32, the token's experts by falling weight; of equal ones the lower number first."""
    counts_E: Tensor
    """int32, the slots of each expert, padding's too."""
    order_P: Tensor
    """int32, token·S + slot, by expert and then by token."""
    offsets_E1: Tensor
    """int32 [E + 1], where each expert's part of `order_P` starts, then P."""
    probs_mean_E: Tensor
    """fp32, differentiable: the mean of p over the counted tokens, 0 where there are none."""
    aux_loss: Tensor
    """fp32 scalar, differentiable, without its coefficient; 0 where no token counts."""


def moe_routing_reference(
    logits_ME: Tensor,
    num_experts_per_tok: int,
    *,
    norm_topk_prob: bool,
    is_counted_M: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seq_aux: bool = False,
) -> Routing:
    """The formula in PyTorch. fp64 is computed in fp64, everything narrower in fp32."""
    num_tokens, num_experts = logits_ME.shape
    probs_ME = _softmax(logits_ME)
    # By the logits: probabilities of different logits can be equal once rounded.
    experts_MS = logits_ME.sort(dim=1, descending=True, stable=True).indices
    experts_MS = experts_MS[:, :num_experts_per_tok].contiguous()
    weights_MS = probs_ME.gather(1, experts_MS)
    if norm_topk_prob:
        weights_MS = weights_MS / (weights_MS.sum(dim=1, keepdim=True) + _EPS)

    chosen_ME = torch.zeros_like(logits_ME, dtype=torch.int32).scatter(1, experts_MS, 1)
    counts_E = chosen_ME.sum(dim=0, dtype=torch.int32)
    offsets_E1 = torch.cat((counts_E.new_zeros(1), counts_E.cumsum(0, dtype=torch.int32)))
    order_P = experts_MS.flatten().argsort(stable=True).to(torch.int32)

    document_M = _documents(num_tokens, is_counted_M, cu_seqlens if seq_aux else None, logits_ME)
    num_documents = len(cu_seqlens) - 1 if seq_aux and cu_seqlens is not None else 1
    sizes_X, loads_XE, sums_XE = (
        _sum_by_document(values, document_M, num_documents)
        for values in (torch.ones_like(probs_ME[:, 0]), chosen_ME.to(probs_ME.dtype), probs_ME)
    )
    means_XE = sums_XE / sizes_X.clamp(min=1).unsqueeze(1)
    # A factor of E for the whole; E/S where each token's choices count as one (SPEC: T·k/E).
    factor = num_experts / num_experts_per_tok if seq_aux else num_experts
    shares_XE = factor * loads_XE / sizes_X.clamp(min=1).unsqueeze(1)
    aux_loss = (shares_XE * means_XE).sum() / (sizes_X > 0).sum().clamp(min=1)
    probs_mean_E = sums_XE.sum(dim=0) / sizes_X.sum().clamp(min=1)
    return Routing(
        weights_MS, experts_MS.to(torch.int32), counts_E, order_P, offsets_E1, probs_mean_E,
        aux_loss,
    )  # fmt: skip


def moe_routing(
    logits_ME: Tensor,
    num_experts_per_tok: int,
    *,
    norm_topk_prob: bool,
    is_counted_M: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seq_aux: bool = False,
) -> Routing:
    """Choose S = `num_experts_per_tok` experts for each token.

    logits_ME [M, E] fp32, fp16 or bf16; S from 1 to 8, E from 2 to 256. The softmax and all sums
    run in fp32. Of equal logits the expert with the lower number is chosen. With `norm_topk_prob`
    a token's weights are divided by their sum + 1e-20: with S = 1 they are then exactly 1 and
    hand no gradient to the logits.

    is_counted_M [M] bool (default: all) says which tokens the mean of p and the auxiliary loss are
    taken over. The others, padding, are still routed, so that shapes are static. The auxiliary
    loss is over all counted tokens at once or, with `seq_aux`, the mean over the documents that
    have counted tokens; cu_seqlens [documents + 1] int32 then says where each starts in the M
    tokens, with M at its end. On a GPU nothing waits for the host.

    Raises ValueError where S, E or a shape is out of range, or `seq_aux` comes without cu_seqlens.
    """
    _check(logits_ME, num_experts_per_tok, is_counted_M, cu_seqlens, seq_aux)
    return moe_routing_reference(
        logits_ME, num_experts_per_tok, norm_topk_prob=norm_topk_prob,
        is_counted_M=is_counted_M, cu_seqlens=cu_seqlens, seq_aux=seq_aux,
    )  # fmt: skip


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


def _softmax(logits_ME: Tensor) -> Tensor:
    return logits_ME.to(torch.promote_types(logits_ME.dtype, torch.float32)).softmax(dim=1)


def _documents(
    num_tokens: int, is_counted_M: Tensor | None, cu_seqlens: Tensor | None, like: Tensor
) -> Tensor:
    """int32 [M]: the row of each token in a tensor [X, …], -1 where it does not count."""
    if cu_seqlens is None:
        document_M = torch.zeros(num_tokens, dtype=torch.int32, device=like.device)
    else:
        tokens_M = torch.arange(num_tokens, dtype=torch.int32, device=like.device)
        document_M = torch.searchsorted(cu_seqlens[1:], tokens_M, right=True, out_int32=True)
    return document_M if is_counted_M is None else document_M.masked_fill(~is_counted_M, -1)


def _sum_by_document(values: Tensor, document_M: Tensor, num_documents: int) -> Tensor:
    """The sums [X, …] of values [M, …] over each document's counted tokens."""
    if num_documents == 1:
        is_counted = (document_M == 0).view(-1, *[1] * (values.ndim - 1))
        return torch.where(is_counted, values, 0).sum(dim=0, keepdim=True)
    # What does not count goes to one more row.
    rows_M = torch.where(document_M < 0, num_documents, document_M)
    sums = values.new_zeros(num_documents + 1, *values.shape[1:])
    return sums.index_add(0, rows_M, values)[:-1]
