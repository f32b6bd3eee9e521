"""Filters the tokens that may be drawn, and draws one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimind.inference.row_settings import Asked, Rows

_BLOCK = 64
"""The size of a block of tokens: blocks are summed first, and then the drawn token is searched for
in one of them."""
_BELOW_1 = 1 - torch.finfo(torch.float64).eps


def filtered_probs(logits_RV: Tensor, rows: Rows, asked: Asked) -> Tensor:
    """Gives probabilities [R, V] after each row's temperature, top-k, top-p and min-p, from fp32
    logits [R, V] of `rows`; at least one token remains. Tokens exactly as likely as the least
    likely one kept stay with it."""
    if asked.temperature:
        # Relative to the maximum, so that no temperature overflows.
        relative_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
        logits_RV = relative_RV / rows.column("temperature")[:, None]
    if asked.top_k:
        largest_RK = logits_RV.topk(asked.top_k).values
        top_k_R1 = rows.whole_column("top_k")[:, None]
        least_R1 = largest_RK.gather(1, (top_k_R1 - 1).clamp_min(0))
        drop_RV = (logits_RV < least_R1) & (top_k_R1 > 0)
        logits_RV = logits_RV.masked_fill(drop_RV, float("-inf"))
    probs_RV = logits_RV.softmax(-1)
    if asked.top_p:
        probs_RV = _keep_top_p(probs_RV, rows.column("top_p"), asked)
    if asked.min_p:
        least_R1 = rows.column("min_p")[:, None] * probs_RV.amax(-1, keepdim=True)
        probs_RV = probs_RV.masked_fill(probs_RV < least_R1, 0.0)
    return probs_RV.div_(probs_RV.sum(-1, keepdim=True))


def _keep_top_p(probs_RV: Tensor, top_p_R: Tensor, asked: Asked) -> Tensor:
    # Rows that keep all must not lose their last tokens to rounding.
    top_p_R1 = top_p_R.masked_fill(top_p_R >= 1.0, float("inf"))[:, None]
    if asked.top_p < probs_RV.shape[1]:
        sorted_RK = probs_RV.topk(asked.top_p).values
        if asked.looks:
            reached_R1 = sorted_RK.sum(-1, keepdim=True) >= top_p_R1
            if not bool((reached_R1 | top_p_R1.isinf()).all()):
                sorted_RK = probs_RV.sort(descending=True).values
    else:
        sorted_RK = probs_RV.sort(descending=True).values
    # A token stays if the likelier ones before it have not reached top_p yet.
    kept_RK = sorted_RK.cumsum(-1) - sorted_RK < top_p_R1
    # None stays of a row that is not finite, or where fp32 rounds top_p to 0.
    last_R1 = (kept_RK.sum(-1, keepdim=True) - 1).clamp_min(0)
    least_R1 = sorted_RK.gather(1, last_R1)
    return probs_RV.masked_fill((probs_RV < least_R1) & top_p_R1.isfinite(), 0.0)


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draws a token for each row, int64 [B]: the one at which the summed probabilities pass
    `uniform_B` (fp64, from 0 to below 1) of their total."""
    if short := -probs_BV.shape[1] % _BLOCK:
        probs_BV = nn.functional.pad(probs_BV, (0, short))
    blocks_BNK = probs_BV.unflatten(1, (-1, _BLOCK))
    # Sums in order over the whole vocabulary are slow in fp64: first which block, then which of it.
    sums_BN = blocks_BNK.sum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _find(sums_BN, uniform_B[:, None] * sums_BN.sum(-1, keepdim=True))
    block_BK = blocks_BNK[torch.arange(len(block_B1), device=block_B1.device), block_B1[:, 0]]
    place_B1, _ = _find(block_BK.double(), rest_B1)
    return (block_B1 * _BLOCK + place_B1).squeeze(1)


def _find(parts_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the part at which the sum passes the target, or would pass it without rounding: always
    a part above 0, if there is any. Gives it with the distance into that part."""
    summed_BN = parts_BN.cumsum(-1)
    target_B1 = torch.minimum(target_B1, summed_BN[:, -1:] * _BELOW_1)
    at_B1 = torch.searchsorted(summed_BN, target_B1, right=True).clamp_max(parts_BN.shape[1] - 1)
    before_B1 = summed_BN.gather(1, at_B1) - parts_BN.gather(1, at_B1)
    return at_B1, (target_B1 - before_B1).clamp_min(0)
