"""Describes other libraries' losses of a linear head, which several operations are measured
beside."""

from __future__ import annotations

import torch
from torch import Tensor

from .op import Rival


def cross_entropy_rivals(labels_M: Tensor) -> tuple[Rival, ...]:
    """Gives the losses that are summed over tokens, so that gradients are made in the forward
    pass."""
    return (
        _liger(labels_M, "sum"),
        Rival(
            "liger-cute",
            "liger_kernel.ops.cutedsl.ops:LigerFusedLinearCrossEntropySM90Function",
            lambda apply: lambda h, w: apply(h, w, labels_M, -100, "sum"),
        ),
        Rival(
            "quack",
            "quack.linear_cross_entropy:chunked_linear_cross_entropy",
            lambda loss: lambda h, w: loss(h, w, labels_M, reduction="sum"),
            backward_once=True,
        ),
        _cut_cross_entropy(labels_M, "sum"),
    )


def log_prob_rivals(ids_M: Tensor) -> tuple[Rival, ...]:
    """Gives the losses of each token, whose gradients may differ; a log-probability is such a loss
    with its sign turned."""
    return (
        _liger(ids_M, "none", sign=-1.0),
        Rival(
            "quack",
            "quack.linear_cross_entropy:linear_cross_entropy_func",
            lambda loss: lambda h, w: -loss(h, w, None, ids_M, reduction="none"),
        ),
        _cut_cross_entropy(ids_M, "none", sign=-1.0),
    )


def _liger(labels_M: Tensor, reduction: str, sign: float = 1.0) -> Rival:
    """Describes Liger's loss with the weight's gradient summed in fp32, as here."""
    options = (None, None, -100, 0.0, 0.0, reduction, None, False, torch.float32)
    return Rival(
        "liger",
        "liger_kernel.ops.fused_linear_cross_entropy:LigerFusedLinearCrossEntropyFunction",
        lambda apply: lambda h, w: sign * apply(h, w, labels_M, *options)[0],
        waits=True,
    )


def _cut_cross_entropy(labels_M: Tensor, reduction: str, sign: float = 1.0) -> Rival:
    """Describes Apple's loss, which writes no logits, and by default leaves out gradients that are
    small for the dtype."""
    return Rival(
        "cut-cross-entropy",
        "cut_cross_entropy:linear_cross_entropy",
        lambda loss: lambda h, w: sign * loss(h, w, labels_M, reduction=reduction),
        waits=True,
    )
