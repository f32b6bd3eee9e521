"""Muon's steps beside PyTorch's own, and the engine's beside those of whole tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_steps import FACTORS, RATE, STEPS, engine_steps, plain_steps
from torch import nn

from minimind.engine.muon import Muon, by_shape, one_by_one, orthogonalized
from minimind.engine.state_layout import whole_layout

MUON: dict[str, Any] = {"type": "Muon", "params": {"momentum": 0.9}}


def step_ours(weight: nn.Parameter, rows: tuple[int, ...], dtype: torch.dtype) -> Muon:
    groups = [{"params": [weight], "is_matrix": True}]
    muon = Muon(groups, {weight: rows}, dtype=dtype, lr=0.02, weight_decay=0.1)
    muon.place(whole_layout([weight]))
    return muon


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (17, 17), (1, 9)])
def test_a_matrix_takes_pytorchs_steps(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    updates = step_ours(ours, (shape[0],), torch.float32)
    expected = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        updates.step()
        expected.step()
    moved = (theirs - start).norm()
    # PyTorch's iterations are in bf16, whose rounding reaches a tenth of the smallest directions.
    assert (ours - theirs).norm() < 0.05 * moved


def test_singular_values_come_close_to_one() -> None:
    x = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalized(x))
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert (values.mean() - 1).abs() < 0.15


def test_fused_matrices_are_updated_one_by_one() -> None:
    """As if each were a weight of its own, in a stack of experts too."""
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(2, rows, 8, generator=generator) for rows in (4, 6, 6)]
    grads = [torch.randn(part.shape, generator=generator) for part in parts]
    fused = nn.Parameter(torch.cat(parts, dim=1))
    fused.grad = torch.cat(grads, dim=1)
    step_ours(fused, (4, 6, 6), torch.float32).step()
    for part, grad, updated in zip(parts, grads, fused.split((4, 6, 6), dim=1), strict=True):
        for expert in range(2):
            alone = nn.Parameter(part[expert].clone())
            alone.grad = grad[expert].clone()
            step_ours(alone, (len(alone),), torch.float32).step()
            torch.testing.assert_close(updated[expert], alone.detach(), atol=1e-6, rtol=1e-5)


def test_matrices_of_one_shape_are_computed_at_once() -> None:
    """As on a GPU."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, 4, 8), (3, 6, 8), (2, 4, 8), (1, 6, 8)]
    stacks = [torch.randn(shape, generator=generator) for shape in shapes]
    for alone, at_once in zip(one_by_one(stacks), by_shape(stacks), strict=True):
        torch.testing.assert_close(alone, at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["one rate", "groups"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_every_zero_stage_takes_the_same_steps(kind: str, factors: dict[str, Any]) -> None:
    expected, norms = plain_steps(kind, MUON, 0.05, STEPS, **factors)
    assert min(norms) > 0.05, "each step is clipped, before its update is made orthogonal"
    for name in ("zero0", "zero1", "zero2", "zero3"):
        found, its_norms = engine_steps(name, kind, MUON, 0.05, STEPS, **factors)
        for weight_name, weight in found.items():
            moved = RATE * STEPS
            difference = (weight - expected[weight_name]).abs().max()
            assert difference < (1e-4 if kind == "fp32" else 0.05) * moved, (name, weight_name)
        assert its_norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.usefixtures("one_rank")
def test_a_step_that_is_not_finite_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    muon = step_ours(weight, (4,), torch.float32)
    weight.grad = torch.eye(4)
    muon.step()
    before, state = weight.detach().clone(), {k: v.clone() for k, v in muon.state[weight].items()}
    weight.grad = torch.full((4, 4), torch.nan)
    muon.found_inf = torch.ones(())  # type: ignore[attr-defined]
    muon.step()
    assert torch.equal(weight, before)
    for name, value in muon.state[weight].items():
        assert torch.equal(value, state[name]), name
