"""Computes logits for one chunk of tokens at a time, and accumulates the gradients of hidden states
and weight over chunks.

The linear losses share this: the walk over chunks and its three matrix products. Each loss computes
the gradient of the logits itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from . import backend
from .form import MIN_GENERATED_ROWS, Form

_CPU_CHUNK = 1024
"""The tokens of a chunk: enough for the matrix products' full speed; 26 MB of fp32 logits over 6400
entries."""

_GPU_CHUNK_BYTES = 28_000_000
"""The most bytes of a chunk's logits: they are written once and read three times, from an L2 cache
of 50 MB that an H100 or H200 holds in two halves. 2,048 tokens of 6,400 bf16 logits are 26 MB."""
_GPU_MIN_CHUNK = 1024
"""The least tokens of a chunk where the vocabulary is large: each chunk reads and writes the head's
fp32 gradient, which takes as long as the product of 725 tokens on an H200."""
_GPU_TILE = 128
"""The rows of a matrix product's tile: a chunk is a multiple of it."""
_GPU_STRIDE = 64
"""Rows of logits start at multiples of so many elements. Without that, cuBLAS and the softmax would
move them in 2-byte pieces where the vocabulary's size is odd."""

_WORTH_GATHERING = 0.9
"""Tokens without a loss are left out of the products where fewer than this share have one."""


def _add_body(total_VD: Tensor, share_VD: Tensor) -> None:
    """Adds in place. PyTorch itself would first make an fp32 copy of a share in bf16."""
    total_VD.add_(share_VD)


_add = Form(None, _add_body, num_row_tensors=2)


class TokenChunks:
    """Multiplies one model's hidden states with one head, chunk after chunk through one buffer, and
    gathers the gradients of both, as far as `wanted`."""

    def __init__(
        self,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        chunk_size: int | None,
        wanted: tuple[bool, bool] = (False, False),
    ) -> None:
        num_tokens, vocab = hidden_MD.shape[0], weight_VD.shape[0]
        on_cpu = hidden_MD.device.type == "cpu"
        # fp16 products on a CPU are two hundred times slower than fp32 ones.
        half_on_cpu = on_cpu and hidden_MD.dtype == torch.float16
        self._dtype = torch.float32 if half_on_cpu else hidden_MD.dtype
        self._hidden_MD, self._weight_VD = hidden_MD, weight_VD.to(self._dtype)
        self.weight_dtype = weight_VD.dtype
        self._row_stride = vocab if on_cpu else -(-vocab // _GPU_STRIDE) * _GPU_STRIDE
        tile = 1
        if chunk_size is None and on_cpu:
            chunk_size = _CPU_CHUNK
        elif chunk_size is None:
            tile = _GPU_TILE
            rows = _GPU_CHUNK_BYTES // (self._row_stride * self._dtype.itemsize)
            chunk_size = max(rows // tile * tile, _GPU_MIN_CHUNK)
        # Chunks of like size: a last one of a single row would ask for other generated code.
        num_chunks, num_tiles = -(-num_tokens // chunk_size), -(-num_tokens // tile)
        edges = [
            min(i * num_tiles // max(num_chunks, 1) * tile, num_tokens)
            for i in range(num_chunks + 1)
        ]
        self.slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self.loss_dtype = torch.promote_types(self._dtype, torch.float32)
        self.generated = (
            on_cpu
            and backend.use_compiled_cpu(num_tokens, num_tokens * vocab)
            and num_tokens // num_chunks >= MIN_GENERATED_ROWS
        )
        self._buffer_CV: Tensor | None = None
        wants_hidden, self._wants_weight = wanted
        self.grad_hidden_MD = torch.empty_like(hidden_MD) if wants_hidden else None
        self.grad_weight_VD: Tensor | None = None
        if self._wants_weight and not self.slices:
            self.grad_weight_VD = torch.zeros_like(weight_VD, dtype=self.loss_dtype)

    def _new_logits(self, num_rows: int) -> Tensor:
        """Allocates logits [num_rows, V]. The memory between a row's end and the next row's start
        belongs to no other tensor."""
        shape = num_rows, self._row_stride
        return self._hidden_MD.new_empty(shape, dtype=self._dtype)[:, : self._weight_VD.shape[0]]

    def new_logits_within(self, max_bytes: int) -> Tensor | None:
        """Allocates the logits of all tokens; gives None where they take more than `max_bytes`."""
        num_tokens = len(self._hidden_MD)
        if num_tokens * self._row_stride * self._dtype.itemsize > max_bytes:
            return None
        return self._new_logits(num_tokens)

    def logits(self, rows: slice, kept_MV: Tensor | None = None) -> Tensor:
        """Computes the logits of `rows`: into these rows of `kept_MV` if it is given, else into the
        shared buffer, which the next call overwrites."""
        if kept_MV is not None:
            logits_CV = kept_MV[rows]
        else:
            if self._buffer_CV is None:
                self._buffer_CV = self._new_logits(max(s.stop - s.start for s in self.slices))
            logits_CV = self._buffer_CV[: rows.stop - rows.start]
        return torch.mm(self._hidden(rows), self._weight_VD.t(), out=logits_CV)

    def add_grads(self, rows: slice, grad_logits_CV: Tensor) -> None:
        if self.grad_hidden_MD is not None:
            into = self.grad_hidden_MD[rows]
            if into.dtype == self._dtype:
                torch.mm(grad_logits_CV, self._weight_VD, out=into)
            else:
                into.copy_(torch.mm(grad_logits_CV, self._weight_VD))
        if self._wants_weight:
            self._add_grad_weight(grad_logits_CV.t(), self._hidden(rows))

    def _add_grad_weight(self, grad_logits_VC: Tensor, hidden_CD: Tensor) -> None:
        """Adds a chunk's share to the weight's gradient, which is summed in the losses' dtype. On
        an NVIDIA GPU cuBLAS adds a 16-bit product's fp32 sums to it in place; elsewhere each share
        is first rounded to the product's dtype."""
        total_VD, factors = self.grad_weight_VD, (grad_logits_VC, hidden_CD)
        if total_VD is not None and self._dtype == self.loss_dtype:
            total_VD.addmm_(*factors)
        elif self._dtype != self.loss_dtype and hidden_CD.is_cuda and not torch.version.hip:
            wide: dict[str, Any] = {"out_dtype": self.loss_dtype}
            if total_VD is None:
                self.grad_weight_VD = torch.mm(*factors, **wide)
            else:
                torch.addmm(total_VD, *factors, **wide, out=total_VD)
        elif total_VD is None:
            self.grad_weight_VD = torch.mm(*factors).to(self.loss_dtype)
        else:
            _add(total_VD, torch.mm(*factors))

    def grads(self) -> tuple[Tensor | None, Tensor | None]:
        """Gives the gathered gradients in the dtypes of hidden states and weight."""
        if self.grad_weight_VD is None:
            return self.grad_hidden_MD, None
        return self.grad_hidden_MD, self.grad_weight_VD.to(self.weight_dtype)

    def _hidden(self, rows: slice) -> Tensor:
        return self._hidden_MD[rows].to(self._dtype)


def rows_worth_gathering(labels_M: Tensor, ignored: int, in_triton: bool) -> Tensor | None:
    """Gives the indices of the tokens whose label is not `ignored`, if leaving out the others saves
    time. Gives None if all tokens are to be computed, as always on a GPU, where counting them would
    make the host wait."""
    if in_triton or labels_M.is_cuda:
        return None
    is_counted_M = labels_M != ignored
    if is_counted_M.sum() >= _WORTH_GATHERING * len(is_counted_M):
        return None
    return is_counted_M.nonzero().squeeze(1)


def scatter_rows(loss_R: Tensor, rows_R: Tensor, num_tokens: int) -> Tensor:
    """Puts the losses of some tokens at their places among all tokens; the other tokens get 0."""
    return loss_R.new_zeros(num_tokens).index_put((rows_R,), loss_R)


class EarlyGrads(torch.autograd.Function):
    """Scales, in the backward pass, the gradients that the forward pass of a subclass gathered: by
    one factor for all tokens, or, where the weight needs no gradient, by a factor for each."""

    @staticmethod
    def keep(
        ctx: Any, chunks: TokenChunks, labels_M: Tensor, ignored: int, *, uniform_grad: bool
    ) -> None:
        """Saves tensors for the backward pass. Tokens with the label `ignored` do not count."""
        ctx.save_for_backward(labels_M, chunks.grad_hidden_MD, chunks.grad_weight_VD)
        ctx.weight_dtype, ctx.ignored = chunks.weight_dtype, ignored
        ctx.uniform_grad = uniform_grad

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Takes first the gradient of each token's loss; the other results have none."""
        grad_M, (labels_M, grad_hidden_MD, grad_weight_VD) = grads[0], ctx.saved_tensors
        if ctx.uniform_grad:
            factor = _common_grad_of(grad_M, labels_M, ctx.ignored)
        else:
            assert grad_weight_VD is None, "a weight's gradient sums over tokens"
            factor = torch.where(labels_M != ctx.ignored, grad_M, 0).unsqueeze(1)
        if grad_hidden_MD is not None:
            grad_hidden_MD = (grad_hidden_MD * factor).to(grad_hidden_MD.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = (grad_weight_VD * factor).to(ctx.weight_dtype)
        return grad_hidden_MD, grad_weight_VD, *(None,) * (len(ctx.needs_input_grad) - 2)


def _common_grad_body(grad_M: Tensor, labels_M: Tensor, *, ignored: int) -> tuple[Tensor, Tensor]:
    """Gives the gradient that the counted tokens' losses received, 0 if there are none, and whether
    all of them received the same."""
    is_counted_M = labels_M != ignored
    first_1 = is_counted_M.byte().argmax(keepdim=True)
    factor_1 = torch.where(is_counted_M[first_1], grad_M[first_1], 0)
    is_uniform = ((grad_M == factor_1) | ~is_counted_M).all()
    return factor_1.squeeze(), is_uniform


common_grad = Form("common_grad:common_grad", _common_grad_body, num_row_tensors=2)


def _common_grad_of(grad_M: Tensor, labels_M: Tensor, ignored: int) -> Tensor:
    """Gives the gradient that all counted tokens received, without waiting for a GPU. Raises
    ValueError (on a GPU an assertion on the device) if they received different gradients."""
    if not len(grad_M):
        return grad_M.new_zeros(())
    factor, is_uniform = common_grad(grad_M, labels_M, generated=False, ignored=ignored)
    _check_uniform(is_uniform)
    return factor


def _check_uniform(is_uniform: Tensor) -> None:
    message = (
        "a loss that was computed for one gradient common to all tokens received different ones: "
        "sum its tokens; where they are weighted one by one, leave uniform_grad out, or weigh them "
        "inside token_loss"
    )
    if is_uniform.device.type != "cpu" or torch.compiler.is_compiling():
        torch.ops.aten._assert_async.msg(is_uniform, message)
    elif not is_uniform:
        raise ValueError(message)
