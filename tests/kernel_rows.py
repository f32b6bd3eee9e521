"""Chooses the values at which an operation of the kernels is tested: every pair of values occurs
together, but not every combination."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from minimind_kernels.op import Case, Op

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = (torch.float32, torch.float16) + (() if INTERPRETED else (torch.bfloat16,))


def choose(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Gives the indices of enough rows that any two values which occur together in some row still
    do."""
    pairs = {}
    for place, row in enumerate(rows):
        values = sorted((name, repr(value)) for name, value in row.items())
        pairs[place] = set(itertools.combinations_with_replacement(values, 2))
    missing, chosen = set().union(*pairs.values()), set()
    while missing:
        best = max(pairs, key=lambda place: len(pairs[place] & missing))
        missing -= pairs.pop(best)
        chosen.add(best)
    return chosen


def rows_of(op: Op, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> list[dict[str, Any]]:
    """Gives the values at which to test an operation."""
    values = {**op.tested, "dtype": dtypes}
    rows = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    chosen = [rows[place] for place in sorted(choose(rows))]
    magnitudes = [
        typical_row(op) | {"dtype": dtype, "scale": scale}
        for dtype in dtypes
        for scale in op.scales
    ]
    return chosen + magnitudes


def typical_row(op: Op) -> dict[str, Any]:
    """Gives each name's first value; for tokens, the first that is above 4."""
    row = {name: values[0] for name, values in op.tested.items()}
    (name,) = (name for name in op.tested if name.split()[0] == "tokens")
    tokens = (v for v in op.tested[name] if (v[0] if isinstance(v, tuple) else v) > 4)
    return row | {name: next(tokens)}


def summed(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """Sums the function's output where the case asks for one gradient for all tokens."""
    return (lambda *inputs: function(*inputs).sum()) if case.uniform_grad else function
