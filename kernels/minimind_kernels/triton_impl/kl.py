"""Computes the KL divergence between two rows of logits and its gradient: one program per row, see
row_softmax.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .row_softmax import (
    add_block,
    join_lanes,
    lane_columns,
    launch_rows,
    load_logits,
    new_lanes,
    store_logits,
)


def kl(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    factor_C: Tensor,
    loss_C: Tensor,
    *,
    temperature: float,
    with_grad: bool,
) -> None:
    """Writes the divergences times `factor`, fp32 [C]; with `with_grad`, overwrites the student's
    logits with the gradient of their sum."""
    launch_rows(
        _kl_kernel,
        logits_CV,
        teacher_logits_CV,
        teacher_ptr=teacher_logits_CV,
        teacher_stride=teacher_logits_CV.stride(0),
        factor_ptr=factor_C.contiguous(),
        loss_ptr=loss_C,
        inverse_temperature=1.0 / temperature,
        WITH_GRAD=with_grad,
    )


@triton.jit
def _read_blocks(
    row_ptr,
    teacher_row_ptr,
    inverse_temperature,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gives, in one pass over both rows, the maximum m of the student's logits and Σ exp((z - m) /
    T), then the same two numbers of the teacher's."""
    lanes, teacher_lanes = lane_columns(row_ptr, BLOCK), lane_columns(teacher_row_ptr, BLOCK)
    maxima, sums = new_lanes(row_ptr, BLOCK)
    teacher_maxima, teacher_sums = new_lanes(teacher_row_ptr, BLOCK)
    for first in range(0, VOCAB, BLOCK):
        logits = load_logits(row_ptr, first + lanes, VOCAB, WIDTH)
        teacher = load_logits(teacher_row_ptr, first + teacher_lanes, VOCAB, WIDTH)
        maxima, sums = add_block(maxima, sums, logits, inverse_temperature)
        teacher_maxima, teacher_sums = add_block(
            teacher_maxima, teacher_sums, teacher, inverse_temperature
        )
    row_max, total = join_lanes(maxima, sums, inverse_temperature)
    teacher_max, teacher_total = join_lanes(teacher_maxima, teacher_sums, inverse_temperature)
    return row_max, total, teacher_max, teacher_total


@triton.jit
def divergence(below_max, teacher_below_max, total, teacher_total, columns, VOCAB: tl.constexpr):
    """Gives each logit's part of the divergence, and the difference of its probabilities.

    `below_max` and `teacher_below_max` are (z - maximum) / T. They are near 0 for the likely
    tokens, and so nearly exact; rounding a log-probability would lose the digits in which p and q
    differ. The differences q - p sum to 0 over the vocabulary. They are added to the parts, where
    they cancel the rounding errors of the two sums when the divergence is small.
    """
    teacher_prob = tl.exp(teacher_below_max) / teacher_total
    gap = tl.exp(below_max) / total - teacher_prob
    log_ratio = teacher_below_max - below_max + _log_ratio(total, teacher_total)
    # Beyond the vocabulary both are -inf.
    return tl.where(columns < VOCAB, teacher_prob * log_ratio + gap, 0.0), gap


@triton.jit
def _log_ratio(a, b):
    """Gives log(a / b), to as many digits near 0 as elsewhere: log(1 + d) · d / ((1 + d) - 1) errs
    by the rounding of d, not by that of 1 + d."""
    d = (a - b) / b
    ratio = 1.0 + d
    near = tl.where(ratio == 1.0, d, tl.log(ratio) * (d / tl.where(ratio == 1.0, 1.0, ratio - 1.0)))
    return tl.where(tl.abs(d) < 0.5, near, tl.log(a / b))


@triton.jit
def _kl_kernel(
    logits_ptr,
    logits_stride,
    teacher_ptr,
    teacher_stride,
    factor_ptr,
    loss_ptr,
    inverse_temperature,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    factor = tl.load(factor_ptr + row).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    if BLOCK >= VOCAB:
        logits = load_logits(row_ptr, columns, VOCAB, WIDTH)
        teacher = load_logits(teacher_row_ptr, columns, VOCAB, WIDTH)
        below_max = (logits - tl.max(logits, axis=0)) * inverse_temperature
        teacher_below_max = (teacher - tl.max(teacher, axis=0)) * inverse_temperature
        total = tl.sum(tl.exp(below_max), axis=0)
        teacher_total = tl.sum(tl.exp(teacher_below_max), axis=0)
        parts, gap = divergence(below_max, teacher_below_max, total, teacher_total, columns, VOCAB)
        if WITH_GRAD:
            store_logits(row_ptr, columns, gap * (factor * inverse_temperature), WIDTH)
    else:
        row_max, total, teacher_max, teacher_total = _read_blocks(
            row_ptr, teacher_row_ptr, inverse_temperature, VOCAB, WIDTH, BLOCK
        )
        parts = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, VOCAB, BLOCK):
            logits = load_logits(row_ptr, first + columns, VOCAB, WIDTH)
            teacher = load_logits(teacher_row_ptr, first + columns, VOCAB, WIDTH)
            below_max = (logits - row_max) * inverse_temperature
            teacher_below_max = (teacher - teacher_max) * inverse_temperature
            more, gap = divergence(
                below_max, teacher_below_max, total, teacher_total, first + columns, VOCAB
            )
            parts += more
            if WITH_GRAD:
                store_logits(row_ptr, first + columns, gap * (factor * inverse_temperature), WIDTH)
    tl.store(loss_ptr + row, tl.sum(parts, axis=0) * factor)
