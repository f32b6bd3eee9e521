"""Computes cross-entropy, divergence from a teacher and the gradient of both: one program a row."""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import SOFTMAX_TILES, row_softmax_stats
from .launch import block, device_of, launch


def distillation_loss(
    logits_CV: Tensor, teacher_logits_CV: Tensor, labels_C: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Gives (cross-entropies, divergences), fp32 [C], 0 where the label is negative."""
    return _launch(logits_CV, teacher_logits_CV, labels_C, 0.0, temperature, with_grad=False)


def distillation_loss_and_grad(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    *,
    alpha: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gives the results of `distillation_loss`; overwrites the student's logits with the gradient
    of the sum of the losses."""
    return _launch(logits_CV, teacher_logits_CV, labels_C, alpha, temperature, with_grad=True)


def _launch(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    alpha: float,
    temperature: float,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    ce_C, kl_C = (logits_CV.new_empty(logits_CV.shape[:1], dtype=torch.float32) for _ in range(2))
    tile = device_of(logits_CV).tile(SOFTMAX_TILES)
    launch(
        _distillation_kernel,
        (logits_CV.shape[0],),
        tile.num_warps,
        logits_ptr=logits_CV,
        teacher_ptr=teacher_logits_CV,
        labels_ptr=labels_C.contiguous(),
        ce_ptr=ce_C,
        kl_ptr=kl_C,
        logits_stride=logits_CV.stride(0),
        teacher_stride=teacher_logits_CV.stride(0),
        alpha=float(alpha),
        temperature=float(temperature),
        VOCAB=logits_CV.shape[1],
        BLOCK=min(tile.elements, block(logits_CV.shape[1])),
        WITH_GRAD=with_grad,
    )
    return ce_C, kl_C


@triton.jit
def _distillation_kernel(
    logits_ptr,
    teacher_ptr,
    labels_ptr,
    ce_ptr,
    kl_ptr,
    logits_stride,
    teacher_stride,
    alpha,
    temperature,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """Reads each row once for each of three softmaxes, and once more: from L2 after the first
    time."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    label = tl.load(labels_ptr + row)
    counted = tl.where(label >= 0, 1.0, 0.0)
    label_logit = tl.load(row_ptr + tl.where(label >= 0, label, 0)).to(tl.float32)
    inverse_temperature = 1.0 / temperature
    plain_max, plain_total = row_softmax_stats(row_ptr, 1.0, VOCAB, BLOCK)
    row_max, total = row_softmax_stats(row_ptr, inverse_temperature, VOCAB, BLOCK)
    teacher_max, teacher_total = row_softmax_stats(
        teacher_row_ptr, inverse_temperature, VOCAB, BLOCK
    )
    plain_log_sum = tl.log(plain_total)
    log_sum, teacher_log_sum = tl.log(total), tl.log(teacher_total)
    ce_factor = alpha * counted
    kl_factor = (1.0 - alpha) * temperature * counted
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    if WITH_GRAD:
        # Every thread has read the label's logit before any overwrites it.
        tl.debug_barrier()
    for first in range(0, VOCAB, BLOCK):
        mask = first + columns < VOCAB
        logits = tl.load(row_ptr + first + columns, mask, other=0.0).to(tl.float32)
        teacher = tl.load(teacher_row_ptr + first + columns, mask, other=0.0).to(tl.float32)
        log_prob = logits * inverse_temperature - row_max - log_sum
        teacher_log_prob = teacher * inverse_temperature - teacher_max - teacher_log_sum
        teacher_prob = tl.exp(teacher_log_prob)
        sums += tl.where(mask, teacher_prob * (teacher_log_prob - log_prob), 0.0)
        if WITH_GRAD:
            probs = tl.exp(logits - plain_max - plain_log_sum)
            grads = tl.where(first + columns == label, probs - 1.0, probs) * ce_factor
            grads += (tl.exp(log_prob) - teacher_prob) * kl_factor
            tl.store(row_ptr + first + columns, grads.to(row_ptr.dtype.element_ty), mask)
    tl.store(ce_ptr + row, (plain_max - label_logit + plain_log_sum) * counted)
    tl.store(kl_ptr + row, tl.sum(sums, axis=0) * counted)
