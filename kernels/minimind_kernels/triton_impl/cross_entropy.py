"""Computes the loss and the gradient of logits: one program a row, the row read from L2 the second
time."""

# Pyright reads a Triton function as the Python it is not.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import Tile, Tiles
from .launch import block, device_of, launch

SOFTMAX_TILES = Tiles("softmax", Tile(elements=2048, num_warps=8))


def cross_entropy_loss(logits_CV: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gives (losses, maxima, logarithms of the sums), fp32 [C]; a negative label's loss is 0."""
    loss_C, max_C, log_sum_C = _new_stats(logits_CV)
    _launch_loss(logits_CV, labels_C, loss_C, max_C, log_sum_C, with_grad=False)
    return loss_C, max_C, log_sum_C


def cross_entropy_loss_and_grad(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Gives the losses [C] fp32; overwrites the logits with the gradient of their sum."""
    loss_C, max_C, log_sum_C = _new_stats(logits_CV)
    _launch_loss(logits_CV, labels_C, loss_C, max_C, log_sum_C, with_grad=True)
    return loss_C


def cross_entropy_grad(
    logits_CV: Tensor, labels_C: Tensor, max_C: Tensor, log_sum_C: Tensor, grad_C: Tensor
) -> None:
    """Overwrites the logits with their gradient, given the gradient of each loss."""
    tile = device_of(logits_CV).tile(SOFTMAX_TILES)
    launch(
        _grad_kernel,
        (logits_CV.shape[0],),
        tile.num_warps,
        logits_ptr=logits_CV,
        labels_ptr=labels_C.contiguous(),
        max_ptr=max_C.contiguous(),
        log_sum_ptr=log_sum_C.contiguous(),
        grad_ptr=grad_C.contiguous(),
        logits_stride=logits_CV.stride(0),
        VOCAB=logits_CV.shape[1],
        BLOCK=min(tile.elements, block(logits_CV.shape[1])),
    )


def _new_stats(logits_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    loss_C, max_C, log_sum_C = (
        logits_CV.new_empty(logits_CV.shape[:1], dtype=torch.float32) for _ in range(3)
    )
    return loss_C, max_C, log_sum_C


def _launch_loss(
    logits_CV: Tensor,
    labels_C: Tensor,
    loss_C: Tensor,
    max_C: Tensor,
    log_sum_C: Tensor,
    *,
    with_grad: bool,
) -> None:
    tile = device_of(logits_CV).tile(SOFTMAX_TILES)
    launch(
        _loss_kernel,
        (logits_CV.shape[0],),
        tile.num_warps,
        logits_ptr=logits_CV,
        labels_ptr=labels_C.contiguous(),
        loss_ptr=loss_C,
        max_ptr=max_C,
        log_sum_ptr=log_sum_C,
        logits_stride=logits_CV.stride(0),
        VOCAB=logits_CV.shape[1],
        BLOCK=min(tile.elements, block(logits_CV.shape[1])),
        WITH_GRAD=with_grad,
    )


@triton.jit
def row_softmax_stats(row_ptr, scale, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Gives the maximum of a row times scale, and the sum of the exponentials after subtracting it:
    in one pass, each lane on its own columns, joined at the end."""
    columns = tl.arange(0, BLOCK)
    maxima = tl.full((BLOCK,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, VOCAB, BLOCK):
        mask = first + columns < VOCAB
        # The lowest finite number, not -inf: exp(-inf - -inf) is no number.
        logits = tl.load(row_ptr + first + columns, mask, other=0.0).to(tl.float32) * scale
        logits = tl.where(mask, logits, -3.4e38)
        higher = tl.maximum(maxima, logits)
        sums = sums * tl.exp(maxima - higher) + tl.where(mask, tl.exp(logits - higher), 0.0)
        maxima = higher
    row_max = tl.max(maxima, axis=0)
    return row_max, tl.sum(sums * tl.exp(maxima - row_max), axis=0)


@triton.jit
def _write_grad(row_ptr, label, row_max, log_sum, grad, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    for first in range(0, VOCAB, BLOCK):
        mask = first + columns < VOCAB
        logits = tl.load(row_ptr + first + columns, mask, other=0.0).to(tl.float32)
        probs = tl.exp(logits - row_max - log_sum)
        grads = tl.where(first + columns == label, probs - 1.0, probs) * grad
        tl.store(row_ptr + first + columns, grads.to(row_ptr.dtype.element_ty), mask)


@triton.jit
def _loss_kernel(
    logits_ptr,
    labels_ptr,
    loss_ptr,
    max_ptr,
    log_sum_ptr,
    logits_stride,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    label = tl.load(labels_ptr + row)
    row_max, total = row_softmax_stats(row_ptr, 1.0, VOCAB, BLOCK)
    log_sum = tl.log(total)
    counted = label >= 0
    label_logit = tl.load(row_ptr + tl.where(counted, label, 0)).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(counted, row_max - label_logit + log_sum, 0.0))
    tl.store(max_ptr + row, row_max)
    tl.store(log_sum_ptr + row, log_sum)
    if WITH_GRAD:
        # Every thread has read the label's logit before any overwrites it.
        tl.debug_barrier()
        _write_grad(row_ptr, label, row_max, log_sum, tl.where(counted, 1.0, 0.0), VOCAB, BLOCK)


@triton.jit
def _grad_kernel(
    logits_ptr,
    labels_ptr,
    max_ptr,
    log_sum_ptr,
    grad_ptr,
    logits_stride,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    grad = tl.where(label >= 0, tl.load(grad_ptr + row).to(tl.float32), 0.0)
    _write_grad(
        logits_ptr + row * logits_stride,
        label,
        tl.load(max_ptr + row),
        tl.load(log_sum_ptr + row),
        grad,
        VOCAB,
        BLOCK,
    )
