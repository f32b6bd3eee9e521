"""Computes cross-entropy, divergence from a teacher and the gradient of both: one program per row,
see row_softmax.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .kl import divergence
from .row_softmax import (
    add_block,
    join_lanes,
    lane_columns,
    launch_rows,
    load_logits,
    new_lanes,
    row_weight,
    store_logits,
)


def distillation(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    ce_C: Tensor,
    kl_C: Tensor,
    *,
    alpha: float,
    temperature: float,
    ignored: int,
    with_grad: bool,
) -> None:
    """Writes cross-entropies and divergences, fp32 [C], 0 where the label is ignored; with
    `with_grad`, overwrites the student's logits with the gradient of the sum of the losses."""
    launch_rows(
        _distillation_kernel,
        logits_CV,
        teacher_logits_CV,
        teacher_ptr=teacher_logits_CV,
        teacher_stride=teacher_logits_CV.stride(0),
        labels_ptr=labels_C.contiguous(),
        ce_ptr=ce_C,
        kl_ptr=kl_C,
        alpha=float(alpha),
        temperature=float(temperature),
        ignored=ignored,
        WITH_GRAD=with_grad,
    )


@triton.jit
def _read_blocks(
    row_ptr,
    teacher_row_ptr,
    label,
    inverse_temperature,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gives, in one pass, the numbers of three softmaxes and the label's logit: the student's
    maximum, its sums of exponentials at temperature 1 and at the given temperature, and the
    teacher's maximum and sum."""
    lanes, teacher_lanes = lane_columns(row_ptr, BLOCK), lane_columns(teacher_row_ptr, BLOCK)
    maxima, plain_sums = new_lanes(row_ptr, BLOCK)
    teacher_maxima, teacher_sums = new_lanes(teacher_row_ptr, BLOCK)
    sums, label_logits = tl.zeros_like(plain_sums), tl.zeros_like(plain_sums)
    for first in range(0, VOCAB, BLOCK):
        logits = load_logits(row_ptr, first + lanes, VOCAB, WIDTH)
        teacher = load_logits(teacher_row_ptr, first + teacher_lanes, VOCAB, WIDTH)
        label_logits += tl.sum(tl.where(first + lanes == label, logits, 0.0), axis=1)
        _, plain_sums = add_block(maxima, plain_sums, logits, 1.0)
        maxima, sums = add_block(maxima, sums, logits, inverse_temperature)
        teacher_maxima, teacher_sums = add_block(
            teacher_maxima, teacher_sums, teacher, inverse_temperature
        )
    _, plain_total = join_lanes(maxima, plain_sums, 1.0)
    row_max, total = join_lanes(maxima, sums, inverse_temperature)
    teacher_max, teacher_total = join_lanes(teacher_maxima, teacher_sums, inverse_temperature)
    return row_max, plain_total, total, teacher_max, teacher_total, tl.sum(label_logits, axis=0)


@triton.jit
def _grads(logits, columns, label, row_max, plain_total, gap, ce_factor, kl_factor):
    probs = tl.exp(logits - row_max) / plain_total
    return tl.where(columns == label, probs - 1.0, probs) * ce_factor + gap * kl_factor


@triton.jit(do_not_specialize=["ignored"])
def _distillation_kernel(
    logits_ptr,
    logits_stride,
    teacher_ptr,
    teacher_stride,
    labels_ptr,
    ce_ptr,
    kl_ptr,
    alpha,
    temperature,
    ignored,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    teacher_row_ptr = teacher_ptr + row * teacher_stride
    label = tl.load(labels_ptr + row)
    weight = row_weight(label, ignored, VOCAB)
    inverse_temperature = 1.0 / temperature
    ce_factor, kl_factor = alpha * weight, (1.0 - alpha) * temperature * weight
    columns = tl.arange(0, BLOCK)
    if BLOCK >= VOCAB:
        logits = load_logits(row_ptr, columns, VOCAB, WIDTH)
        teacher = load_logits(teacher_row_ptr, columns, VOCAB, WIDTH)
        row_max = tl.max(logits, axis=0)
        below_max = (logits - row_max) * inverse_temperature
        teacher_below_max = (teacher - tl.max(teacher, axis=0)) * inverse_temperature
        plain_total = tl.sum(tl.exp(logits - row_max), axis=0)
        total = tl.sum(tl.exp(below_max), axis=0)
        teacher_total = tl.sum(tl.exp(teacher_below_max), axis=0)
        label_logit = tl.sum(tl.where(columns == label, logits, 0.0), axis=0)
        parts, gap = divergence(below_max, teacher_below_max, total, teacher_total, columns, VOCAB)
        if WITH_GRAD:
            grads = _grads(logits, columns, label, row_max, plain_total, gap, ce_factor, kl_factor)
            store_logits(row_ptr, columns, grads, WIDTH)
    else:
        row_max, plain_total, total, teacher_max, teacher_total, label_logit = _read_blocks(
            row_ptr, teacher_row_ptr, label, inverse_temperature, VOCAB, WIDTH, BLOCK
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
                grads = _grads(
                    logits, first + columns, label, row_max, plain_total, gap, ce_factor, kl_factor
                )
                store_logits(row_ptr, first + columns, grads, WIDTH)
    ce = row_max - label_logit + tl.log(plain_total)
    is_ignored = label == ignored
    tl.store(ce_ptr + row, tl.where(is_ignored, 0.0, ce * weight))
    tl.store(kl_ptr + row, tl.where(is_ignored, 0.0, tl.sum(parts, axis=0) * weight))
