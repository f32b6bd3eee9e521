"""Logits for a chunk of tokens at a time, and the gradients of both factors gathered over chunks.

What the linear losses share: the walk and its three matrix products. What stands between logits
and their gradient is each loss's own.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from . import backend
from .form import MIN_GENERATED_ROWS

_CPU_CHUNK = 1024
"""Tokens: enough for the matrix products' full speed; 26 MB of fp32 logits over 6400 entries."""
_GPU_CHUNK = 4096
"""Tokens: 52 MB of bf16 logits over 6400 entries, about an H100's L2."""


class TokenChunks:
    """One model's hidden states against one head, chunk after chunk through one buffer."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, chunk_size: int | None) -> None:
        num_tokens, vocab = hidden_MD.shape[0], weight_VD.shape[0]
        on_cpu = hidden_MD.device.type == "cpu"
        chunk_size = chunk_size or (_CPU_CHUNK if on_cpu else _GPU_CHUNK)
        # Chunks of like size: a last one of a single row would ask for other generated code.
        num_chunks = -(-num_tokens // chunk_size)
        edges = [i * num_tokens // max(num_chunks, 1) for i in range(num_chunks + 1)]
        self.slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        # fp16 products on a CPU are two hundred times slower than fp32 ones.
        half_on_cpu = on_cpu and hidden_MD.dtype == torch.float16
        self._dtype = torch.float32 if half_on_cpu else hidden_MD.dtype
        self._hidden_MD, self._weight_VD = hidden_MD, weight_VD.to(self._dtype)
        longest = max((s.stop - s.start for s in self.slices), default=0)
        self._buffer_CV = hidden_MD.new_empty((longest, vocab), dtype=self._dtype)
        self.loss_dtype = torch.promote_types(self._dtype, torch.float32)
        self.generated = (
            on_cpu
            and backend.use_compiled_cpu(num_tokens, num_tokens * vocab)
            and num_tokens // num_chunks >= MIN_GENERATED_ROWS
        )
        self.grad_hidden_MD: Tensor | None = None
        self.grad_weight_VD: Tensor | None = None

    def logits(self, rows: slice) -> Tensor:
        """The logits of some rows, in the one buffer: the next call overwrites them."""
        logits_CV = self._buffer_CV[: rows.stop - rows.start]
        return torch.mm(self._hidden(rows), self._weight_VD.t(), out=logits_CV)

    def want_grads(self, hidden: bool, weight: bool) -> None:
        """Say, before `add_grads`, which of the two gradients to gather."""
        if hidden:
            self.grad_hidden_MD = torch.empty_like(self._hidden_MD)
        if weight:
            self.grad_weight_VD = torch.zeros_like(self._weight_VD, dtype=self.loss_dtype)

    def add_grads(self, rows: slice, grad_logits_CV: Tensor) -> None:
        if self.grad_hidden_MD is not None:
            self.grad_hidden_MD[rows] = torch.mm(grad_logits_CV, self._weight_VD)
        if self.grad_weight_VD is not None:
            factors = (grad_logits_CV.t(), self._hidden(rows))
            if self._dtype == self.loss_dtype:
                self.grad_weight_VD.addmm_(*factors)
            else:
                self.grad_weight_VD.add_(torch.mm(*factors))

    def _hidden(self, rows: slice) -> Tensor:
        return self._hidden_MD[rows].to(self._dtype)
