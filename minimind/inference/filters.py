"""Removes unlikely tokens (temperature, top-k, top-p, min-p), and draws one of the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimind.inference.batch_settings import RowGroup, UsedSettings

_BLOCK = 64
"""The number of tokens in a block: probabilities are first summed by block, then the drawn token is
searched for inside one block."""
_BELOW_1 = 1 - torch.finfo(torch.float64).eps


def filtered_probs(logits_RV: Tensor, rows: RowGroup, used: UsedSettings) -> Tensor:
    """Gives probabilities [R, V] after each row's temperature, top-k, top-p and min-p, from the
    fp32 logits [R, V] of `rows`. At least one token remains; tokens as likely as the least likely
    one kept are kept too."""
    if used.temperature:
        # Taken relative to the maximum, so that no temperature overflows.
        relative_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
        logits_RV = relative_RV / rows.column("temperature")[:, None]
    if used.top_k:
        largest_RK = logits_RV.topk(used.top_k).values
        top_k_R1 = rows.whole_column("top_k")[:, None]
        least_R1 = largest_RK.gather(1, (top_k_R1 - 1).clamp_min(0))
        drop_RV = (logits_RV < least_R1) & (top_k_R1 > 0)
        logits_RV = logits_RV.masked_fill(drop_RV, float("-inf"))
    probs_RV = logits_RV.softmax(-1)
    if used.top_p:
        probs_RV = _keep_top_p(probs_RV, rows.column("top_p"), used)
    if used.min_p:
        least_R1 = rows.column("min_p")[:, None] * probs_RV.amax(-1, keepdim=True)
        probs_RV = probs_RV.masked_fill(probs_RV < least_R1, 0.0)
    return probs_RV.div_(probs_RV.sum(-1, keepdim=True))


def _keep_top_p(probs_RV: Tensor, top_p_R: Tensor, used: UsedSettings) -> Tensor:
    # A row with top_p = 1 must not lose its last tokens to rounding.
    top_p_R1 = top_p_R.masked_fill(top_p_R >= 1.0, float("inf"))[:, None]
    if used.top_p < probs_RV.shape[1]:
        sorted_RK = probs_RV.topk(used.top_p).values
        if used.looks:
            reached_R1 = sorted_RK.sum(-1, keepdim=True) >= top_p_R1
            if not bool((reached_R1 | top_p_R1.isinf()).all()):
                sorted_RK = probs_RV.sort(descending=True).values
    else:
        sorted_RK = probs_RV.sort(descending=True).values
    # A token stays if the likelier tokens before it have not reached top_p.
    kept_RK = sorted_RK.cumsum(-1) - sorted_RK < top_p_R1
    # Of a row that is not finite, or whose top_p fp32 rounds to 0, no token would stay.
    last_R1 = (kept_RK.sum(-1, keepdim=True) - 1).clamp_min(0)
    least_R1 = sorted_RK.gather(1, last_R1)
    return probs_RV.masked_fill((probs_RV < least_R1) & top_p_R1.isfinite(), 0.0)


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draws a token for each row, int64 [B]: the first at which the cumulative probability passes
    `uniform_B` (fp64, 0 <= u < 1) times the row's total."""
    if short := -probs_BV.shape[1] % _BLOCK:
        probs_BV = nn.functional.pad(probs_BV, (0, short))
    blocks_BNK = probs_BV.unflatten(1, (-1, _BLOCK))
    # fp64 sums in order over the whole vocabulary are slow, so first the block is found, then the
    # token in it.
    sums_BN = blocks_BNK.sum(-1, dtype=torch.float64)
    block_B1, rest_B1 = _find(sums_BN, uniform_B[:, None] * sums_BN.sum(-1, keepdim=True))
    block_BK = blocks_BNK[torch.arange(len(block_B1), device=block_B1.device), block_B1[:, 0]]
    place_B1, _ = _find(block_BK.double(), rest_B1)
    return (block_B1 * _BLOCK + place_B1).squeeze(1)


def _find(parts_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the index of the part at which the cumulative sum passes the target, and the distance
    into that part. The part is above 0 if any is, even where rounding keeps the sum below the
    target."""
    summed_BN = parts_BN.cumsum(-1)
    target_B1 = torch.minimum(target_B1, summed_BN[:, -1:] * _BELOW_1)
    at_B1 = torch.searchsorted(summed_BN, target_B1, right=True).clamp_max(parts_BN.shape[1] - 1)
    before_B1 = summed_BN.gather(1, at_B1) - parts_BN.gather(1, at_B1)
    return at_B1, (target_B1 - before_B1).clamp_min(0)
