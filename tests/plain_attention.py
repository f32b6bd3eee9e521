"""Computes attention within documents plainly, and makes what it is computed from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, Tensor, Tensor]
CPU = torch.device("cpu")


def bounds(lengths: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)]


def random_qkv(
    tokens: int, heads: int, kv_heads: int, size: int = 8, dtype: torch.dtype = torch.float32
) -> Tensors:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(tokens, n, size, generator=generator, dtype=torch.float64)
        for n in (heads, kv_heads, kv_heads)
    )
    return q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()


def plain_attention(q_MNH: Tensor, k_MKH: Tensor, v_MKH: Tensor, cu: Sequence[int]) -> Tensor:
    """softmax(q·kᵀ/√H)·v document by document, the keys repeated for their query heads."""
    group = q_MNH.shape[1] // k_MKH.shape[1]
    k_MNH, v_MNH = (x.repeat_interleave(group, dim=1) for x in (k_MKH, v_MKH))
    pieces = []
    for start, stop in itertools.pairwise(cu):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (q_MNH, k_MNH, v_MNH))
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1).to(q.device)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
        pieces.append((scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


def documents(cu: Sequence[int], device: str = "cpu") -> Any:
    """What a plan asks a batch for."""
    cu_seqlens = torch.tensor(cu, dtype=torch.int32, device=device)
    longest = max(b - a for a, b in itertools.pairwise(cu))
    return SimpleNamespace(cu_seqlens=cu_seqlens, bounds=tuple(cu), max_len=longest)
