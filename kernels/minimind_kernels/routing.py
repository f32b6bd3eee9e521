"""Defines the router's result, which the experts take.

P is the number of token slots, M·S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .op import Inputs


@dataclass(frozen=True, slots=True)
class Routing:
    """Holds the choice of experts for M tokens, ready for `expert_ffn`."""

    weights_MS: Tensor
    """fp32, differentiable."""
    experts_MS: Tensor
    """int32, the token's experts by falling weight; of equal ones the lower number first."""
    counts_E: Tensor
    """int32, the number of slots of each expert, those of padding included."""
    order_P: Tensor
    """int32, token·S + slot, by expert and then by token."""
    offsets_E1: Tensor
    """int32 [E + 1], where each expert's part of `order_P` starts, then P."""
    probs_mean_E: Tensor
    """fp32, differentiable: the mean of p over the counted tokens, 0 where there are none."""
    aux_loss: Tensor
    """fp32 scalar, differentiable, without its coefficient; 0 where no token counts."""


def build_options(inputs: Inputs, *, counted: bool) -> dict[str, Any]:
    """Gives options of `moe_routing` for a case: 64 documents, of which some are empty where tokens
    are few, and, with `counted`, one token of padding in seven."""
    sizes, tokens = inputs.sizes, inputs.tokens
    return {
        "num_experts_per_tok": sizes.experts_per_token,
        "norm_topk_prob": sizes.norm_topk_prob,
        "is_counted_M": inputs.arange(tokens) % 7 != 3 if counted else None,
        "cu_seqlens": (inputs.arange(65) * tokens // 64).to(torch.int32),
        "seq_aux": sizes.seq_aux,
    }
