"""Divides the token slots among experts for products on a CPU, one expert at a time."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from . import backend
from .form import MIN_GENERATED_ROWS

_ROWS_OF_16_BITS = 8
"""Each expert has a multiple of so many rows in 16-bit products. oneDNN divides the rows of a bf16
product into equal blocks: of the row counts from 900 to 1,100, one in seven, such as 1,079, takes 8
to 23% longer per row, and none of these is a multiple of 4 (AMD EPYC with avx512_bf16, PyTorch
2.13). In fp32 no count does."""


class ExpertRows(NamedTuple):
    """Holds one expert's slots. L is their number with padding, N without."""

    expert: int
    slots_L: Tensor
    """int64; slot 0 stands for each row of padding, whose results are not used."""
    slots_N: Tensor
    kept: slice
    """The expert's L rows of what the forward pass keeps."""
    generated: bool
    """Whether generated code runs over the rows: this is decided by all slots together."""


def divide_rows(order_P: Tensor, offsets_E1: Tensor, gate_up_EGD: Tensor) -> list[ExpertRows]:
    """Gives the rows of each expert, those without tokens included."""
    offsets, ffn = offsets_E1.tolist(), gate_up_EGD.shape[1] // 2
    multiple = _ROWS_OF_16_BITS if gate_up_EGD.element_size() == 2 else 1
    all_generated = backend.use_compiled_cpu(offsets[-1], offsets[-1] * ffn)
    parts, first = [], 0
    for expert, (start, stop) in enumerate(itertools.pairwise(offsets)):
        slots_N = order_P[start:stop].long()
        padding = (start - stop) % multiple
        last = first + len(slots_N) + padding
        generated = all_generated and len(slots_N) >= MIN_GENERATED_ROWS
        slots_L = functional.pad(slots_N, (0, padding))
        parts.append(ExpertRows(expert, slots_L, slots_N, slice(first, last), generated))
        first = last
    return parts
