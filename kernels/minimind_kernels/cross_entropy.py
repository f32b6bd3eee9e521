"""Computes the cross-entropy of a chunk of logits and its gradient, in PyTorch or by Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from .form import Form


def label_logits(wide_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Gives the logit of each label [C]; NaN for a label outside the vocabulary."""
    last = wide_CV.shape[1] - 1
    logit_C = wide_CV.gather(1, labels_C.clamp(0, last).unsqueeze(1)).squeeze(1)
    return torch.where((labels_C >= 0) & (labels_C <= last), logit_C, torch.nan)


def _loss_body(
    logits_CV: Tensor,
    labels_C: Tensor,
    loss_C: Tensor,
    max_C: Tensor | None,
    log_sum_C: Tensor | None,
    *,
    ignored: int,
    with_grad: bool,
) -> None:
    """Writes the losses. With `with_grad`, overwrites the logits with the gradient of the losses'
    sum; without, writes the two parts of the logsumexp for a later gradient: the maximum m, and the
    logarithm of Σ exp(z - m). Kept apart, they give probabilities without the rounding of a large
    maximum."""
    wide_CV = logits_CV.to(loss_C.dtype)
    largest_C = wide_CV.amax(dim=-1)
    logs_C = (wide_CV - largest_C.unsqueeze(1)).exp().sum(dim=-1).log()
    losses_C = largest_C - label_logits(wide_CV, labels_C) + logs_C
    loss_C.copy_(torch.where(labels_C == ignored, 0.0, losses_C))
    if with_grad:
        ones_C = torch.ones_like(loss_C)
        _grad_body(logits_CV, labels_C, largest_C, logs_C, ones_C, ignored=ignored)
    elif max_C is not None and log_sum_C is not None:
        max_C.copy_(largest_C)
        log_sum_C.copy_(logs_C)


def _grad_body(
    logits_CV: Tensor,
    labels_C: Tensor,
    max_C: Tensor,
    log_sum_C: Tensor,
    grad_C: Tensor,
    *,
    ignored: int,
) -> None:
    """Overwrites the logits with their gradient, so that no second buffer of that size lives."""
    wide_CV = logits_CV.to(max_C.dtype)
    probs_CV = torch.exp(wide_CV - max_C.unsqueeze(1) - log_sum_C.unsqueeze(1))
    columns_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    is_label_CV = columns_V == labels_C.unsqueeze(1)
    is_known_C = (labels_C >= 0) & (labels_C < logits_CV.shape[1])
    factor_C = torch.where(is_known_C, grad_C, torch.nan)
    factor_C1 = torch.where(labels_C == ignored, 0.0, factor_C).unsqueeze(1)
    logits_CV.copy_(torch.where(is_label_CV, probs_CV - 1, probs_CV) * factor_C1)


cross_entropy_loss = Form(
    "cross_entropy:cross_entropy_loss", _loss_body, num_row_tensors=5,
    overwrites=("logits_CV", "loss_C", "max_C", "log_sum_C"),
)  # fmt: skip
cross_entropy_grad = Form(
    "cross_entropy:cross_entropy_grad", _grad_body, num_row_tensors=5, overwrites=("logits_CV",)
)
