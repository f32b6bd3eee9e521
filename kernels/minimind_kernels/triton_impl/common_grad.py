"""Finds the gradient that the losses of all counted tokens received, in a single program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block, launch

_MOST_AT_ONCE = 8192
_NUM_WARPS = 16


def common_grad(grad_M: Tensor, labels_M: Tensor, *, ignored: int) -> tuple[Tensor, Tensor]:
    """Gives two scalars: the gradient (fp32, 0 where no token counts), and whether all counted
    tokens received the same one."""
    grad = grad_M.new_empty((), dtype=torch.float32)
    is_uniform = grad_M.new_empty((), dtype=torch.bool)
    launch(
        _common_grad_kernel,
        (1,),
        _NUM_WARPS,
        grads_ptr=grad_M,
        labels_ptr=labels_M.contiguous(),
        grad_ptr=grad,
        is_uniform_ptr=is_uniform,
        grads_stride=grad_M.stride(0),
        num_tokens=grad_M.shape[0],
        ignored=ignored,
        BLOCK=min(_MOST_AT_ONCE, block(grad_M.shape[0])),
    )
    return grad, is_uniform


@triton.jit(do_not_specialize=["num_tokens", "ignored"])
def _common_grad_kernel(
    grads_ptr,
    labels_ptr,
    grad_ptr,
    is_uniform_ptr,
    grads_stride,
    num_tokens,
    ignored,
    BLOCK: tl.constexpr,
):
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    num_nans = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_tokens, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        is_token = tokens < num_tokens
        grads = tl.load(grads_ptr + tokens.to(tl.int64) * grads_stride, is_token, other=0.0)
        labels = tl.load(labels_ptr + tokens, is_token, other=0)
        is_counted = is_token & (labels != ignored)
        grads = grads.to(tl.float32)
        lowest = tl.minimum(lowest, tl.where(is_counted, grads, float("inf")))
        highest = tl.maximum(highest, tl.where(is_counted, grads, float("-inf")))
        # A minimum leaves NaN out.
        num_nans += tl.where(is_counted & (grads != grads), 1, 0)
    low, high = tl.min(lowest, axis=0), tl.max(highest, axis=0)
    tl.store(grad_ptr, tl.where(low > high, 0.0, high))
    is_uniform = (low >= high) & (tl.sum(num_nans, axis=0) == 0)
    tl.store(is_uniform_ptr, is_uniform)
