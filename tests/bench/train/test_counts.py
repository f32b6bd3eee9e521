"""bench.train.counts: every operator is seen, and those that make the host wait."""

from __future__ import annotations

import torch

from bench.train.counts import count_step


def test_operators_are_counted_exactly() -> None:
    x = torch.arange(6.0)

    def step() -> None:
        y = x.mul(2)
        y.sum().item()
        y.nonzero()
        y.to(torch.float64)

    counts = count_step(step, torch.device("cpu"))
    assert counts == {
        "dispatched_operators": 5,
        "sync_operators": {"_local_scalar_dense": 1, "nonzero": 1},
        "cuda_launches": None,
    }
