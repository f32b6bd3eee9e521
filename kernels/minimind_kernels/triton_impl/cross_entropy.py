"""Computes the cross-entropy of logits and its gradient: one program per row (row_softmax.py)."""

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
    row_weight,
    store_logits,
)


def cross_entropy_loss(
    logits_CV: Tensor,
    labels_C: Tensor,
    loss_C: Tensor,
    max_C: Tensor | None,
    log_sum_C: Tensor | None,
    *,
    ignored: int,
    with_grad: bool,
) -> None:
    """Writes the losses and, without `with_grad`, maxima and logarithms of the sums, each fp32 [C];
    with it, overwrites the logits with the gradient of the losses' sum."""
    launch_rows(
        _loss_kernel,
        logits_CV,
        labels_ptr=labels_C.contiguous(),
        loss_ptr=loss_C,
        max_ptr=loss_C if max_C is None else max_C,
        log_sum_ptr=loss_C if log_sum_C is None else log_sum_C,
        ignored=ignored,
        WITH_GRAD=with_grad,
    )


def cross_entropy_grad(
    logits_CV: Tensor,
    labels_C: Tensor,
    max_C: Tensor,
    log_sum_C: Tensor,
    grad_C: Tensor,
    *,
    ignored: int,
) -> None:
    """Overwrites the logits with their gradient, given the gradient of each loss."""
    launch_rows(
        _grad_kernel,
        logits_CV,
        labels_ptr=labels_C.contiguous(),
        max_ptr=max_C.contiguous(),
        log_sum_ptr=log_sum_C.contiguous(),
        grad_ptr=grad_C.contiguous(),
        ignored=ignored,
    )


@triton.jit
def _grads(logits, columns, label, row_max, log_sum, factor):
    probs = tl.exp(logits - row_max - log_sum)
    return tl.where(columns == label, probs - 1.0, probs) * factor


@triton.jit
def _write_grad(
    row_ptr,
    label,
    row_max,
    log_sum,
    factor,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    for first in range(0, VOCAB, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        logits = load_logits(row_ptr, columns, VOCAB, WIDTH)
        grads = _grads(logits, columns, label, row_max, log_sum, factor)
        store_logits(row_ptr, columns, grads, WIDTH)


@triton.jit
def _read_blocks(row_ptr, label, VOCAB: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Gives (maximum, sum of exponentials, the label's logit) of a row in one pass."""
    lanes = lane_columns(row_ptr, BLOCK)
    maxima, sums = new_lanes(row_ptr, BLOCK)
    label_logits = tl.zeros_like(sums)
    for first in range(0, VOCAB, BLOCK):
        logits = load_logits(row_ptr, first + lanes, VOCAB, WIDTH)
        maxima, sums = add_block(maxima, sums, logits, 1.0)
        label_logits += tl.sum(tl.where(first + lanes == label, logits, 0.0), axis=1)
    row_max, total = join_lanes(maxima, sums, 1.0)
    return row_max, total, tl.sum(label_logits, axis=0)


@triton.jit(do_not_specialize=["ignored"])
def _loss_kernel(
    logits_ptr,
    logits_stride,
    labels_ptr,
    loss_ptr,
    max_ptr,
    log_sum_ptr,
    ignored,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    label = tl.load(labels_ptr + row)
    weight = row_weight(label, ignored, VOCAB)
    columns = tl.arange(0, BLOCK)
    if BLOCK >= VOCAB:
        logits = load_logits(row_ptr, columns, VOCAB, WIDTH)
        row_max = tl.max(logits, axis=0)
        total = tl.sum(tl.exp(logits - row_max), axis=0)
        label_logit = tl.sum(tl.where(columns == label, logits, 0.0), axis=0)
    else:
        row_max, total, label_logit = _read_blocks(row_ptr, label, VOCAB, WIDTH, BLOCK)
    log_sum = tl.log(total)
    loss = row_max - label_logit + log_sum
    tl.store(loss_ptr + row, tl.where(label == ignored, 0.0, loss * weight))
    if WITH_GRAD:
        # All threads have read the logits that are overwritten: the reductions above wait for them.
        if BLOCK >= VOCAB:
            grads = _grads(logits, columns, label, row_max, log_sum, weight)
            store_logits(row_ptr, columns, grads, WIDTH)
        else:
            _write_grad(row_ptr, label, row_max, log_sum, weight, VOCAB, WIDTH, BLOCK)
    else:
        tl.store(max_ptr + row, row_max)
        tl.store(log_sum_ptr + row, log_sum)


@triton.jit(do_not_specialize=["ignored"])
def _grad_kernel(
    logits_ptr,
    logits_stride,
    labels_ptr,
    max_ptr,
    log_sum_ptr,
    grad_ptr,
    ignored,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    grad = tl.load(grad_ptr + row).to(tl.float32) * row_weight(label, ignored, VOCAB)
    _write_grad(
        logits_ptr + row * logits_stride,
        label,
        tl.load(max_ptr + row),
        tl.load(log_sum_ptr + row),
        # The gradient of an ignored token may have any value, NaN too.
        tl.where(label == ignored, 0.0, grad),
        VOCAB,
        WIDTH,
        BLOCK,
    )
