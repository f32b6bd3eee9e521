"""Computes the KL divergence between two rows of logits and its gradient: one program a row."""

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


def kl_loss(
    logits_CV: Tensor, teacher_logits_CV: Tensor, counted_C: Tensor, *, temperature: float
) -> Tensor:
    """Gives the losses [C] fp32, 0 where not counted."""
    loss_C = logits_CV.new_empty(logits_CV.shape[:1], dtype=torch.float32)
    _launch(logits_CV, teacher_logits_CV, counted_C, loss_C, temperature, True, False)
    return loss_C


def kl_loss_and_grad(
    logits_CV: Tensor, teacher_logits_CV: Tensor, counted_C: Tensor, *, temperature: float
) -> Tensor:
    """Gives the losses [C]; overwrites the student's logits with the gradient of their sum."""
    loss_C = logits_CV.new_empty(logits_CV.shape[:1], dtype=torch.float32)
    _launch(logits_CV, teacher_logits_CV, counted_C, loss_C, temperature, True, True)
    return loss_C


def kl_grad(
    logits_CV: Tensor, teacher_logits_CV: Tensor, grad_C: Tensor, *, temperature: float
) -> None:
    """Overwrites the student's logits with their gradient, given the gradient of each loss."""
    _launch(logits_CV, teacher_logits_CV, grad_C, grad_C, temperature, False, True)


def _launch(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    factor_C: Tensor,
    loss_C: Tensor,
    temperature: float,
    with_loss: bool,
    with_grad: bool,
) -> None:
    tile = device_of(logits_CV).tile(SOFTMAX_TILES)
    launch(
        _kl_kernel,
        (logits_CV.shape[0],),
        tile.num_warps,
        logits_ptr=logits_CV,
        teacher_ptr=teacher_logits_CV,
        factor_ptr=factor_C.contiguous(),
        loss_ptr=loss_C,
        logits_stride=logits_CV.stride(0),
        teacher_stride=teacher_logits_CV.stride(0),
        inverse_temperature=1.0 / temperature,
        VOCAB=logits_CV.shape[1],
        BLOCK=min(tile.elements, block(logits_CV.shape[1])),
        WITH_LOSS=with_loss,
        WITH_GRAD=with_grad,
    )


@triton.jit
def _kl_kernel(
    logits_ptr,
    teacher_ptr,
    factor_ptr,
    loss_ptr,
    logits_stride,
    teacher_stride,
    inverse_temperature,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_LOSS: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """Reads the rows from L2 the second time; `factor` is 0 or 1 with a loss, else its gradient."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    factor = tl.load(factor_ptr + row).to(tl.float32)
    row_max, total = row_softmax_stats(row_ptr, inverse_temperature, VOCAB, BLOCK)
    teacher_max, teacher_total = row_softmax_stats(
        teacher_row_ptr, inverse_temperature, VOCAB, BLOCK
    )
    log_ratio_of_sums = tl.log(total) - tl.log(teacher_total)
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, VOCAB, BLOCK):
        mask = first + columns < VOCAB
        logits = tl.load(row_ptr + first + columns, mask, other=0.0).to(tl.float32)
        teacher = tl.load(teacher_row_ptr + first + columns, mask, other=0.0).to(tl.float32)
        # Below 0 and, where it matters, close to it: rounding the logarithm of a probability
        # would cost the digits that p - q leaves.
        below_max = logits * inverse_temperature - row_max
        teacher_below_max = teacher * inverse_temperature - teacher_max
        teacher_prob = tl.exp(teacher_below_max) / teacher_total
        if WITH_LOSS:
            log_ratio = teacher_below_max - below_max + log_ratio_of_sums
            sums += tl.where(mask, teacher_prob * log_ratio, 0.0)
        if WITH_GRAD:
            grads = (tl.exp(below_max) / total - teacher_prob) * (factor * inverse_temperature)
            tl.store(row_ptr + first + columns, grads.to(row_ptr.dtype.element_ty), mask)
    if WITH_LOSS:
        tl.store(loss_ptr + row, tl.sum(sums, axis=0) * factor)
