"""A step's numbers: named on the device, one row on their way, the same names on the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimind.engine.pending import Pending, RouterNumbers, StepNumbers


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def update(first: float, *, has_experts: bool) -> StepNumbers:
    """Each number another one."""
    routers = None
    if has_experts:
        routers = RouterNumbers(
            aux_loss=scalar(first + 10),
            dropped=scalar(first + 11),
            tokens_LE=first + torch.arange(12.0, 18.0, dtype=torch.float64).view(2, 3),
            grad_norm=scalar(first + 18),
        )
    return StepNumbers(
        count=scalar(first + 1),
        tokens=scalar(first + 2),
        stops=scalar(first + 3),
        loss=scalar(first + 4),
        metrics_N=first + torch.arange(5.0, 7.0, dtype=torch.float64),
        grad_norm=scalar(first + 7),
        routers=routers,
    )


def read(*updates: StepNumbers, losses: list[float]) -> StepNumbers:
    numbers = StepNumbers.of_step(updates, [torch.tensor(loss) for loss in losses])
    return Pending.of(3, 0.5, {}, numbers).read()


def test_each_number_arrives_under_its_name():
    sent = update(0, has_experts=True)
    found = read(sent, losses=[30.0, 31.0])
    assert found.losses_U is not None
    assert found.losses_U.tolist() == [30, 31]
    assert found.routers is not None
    assert found.routers.tokens_LE.tolist() == [[12, 13, 14], [15, 16, 17]]
    names = ("count", "tokens", "stops", "loss", "metrics_N", "grad_norm")
    assert [getattr(found, name).tolist() for name in names] == [1, 2, 3, 4, [5, 6], 7]
    names = ("aux_loss", "dropped", "grad_norm")
    assert [getattr(found.routers, name).item() for name in names] == [10, 11, 18]
    assert found.mean_loss == 4
    assert found.mean_metrics == [5, 6]
    assert read(update(0, has_experts=False), losses=[1.0]).routers is None


def test_a_step_is_the_mean_of_its_updates_and_the_sum_of_their_tokens():
    updates = [update(first, has_experts=True) for first in (0, 1, 5)]
    found = read(*updates, losses=[30.0, 31.0, 32.0])
    expected = update(2, has_experts=True)
    assert found.tokens == 2 + 3 + 7
    assert found.losses_U is not None
    assert found.losses_U.tolist() == [30, 31, 32]
    for name in ("count", "stops", "loss", "metrics_N", "grad_norm"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.routers is not None
    assert expected.routers is not None
    torch.testing.assert_close(found.routers.flat(), expected.routers.flat())


def test_a_step_with_nothing_to_learn_from():
    zeros = update(0, has_experts=False)
    nothing = zeros.over(torch.zeros_like(zeros.flat()))
    found = read(nothing, losses=[])
    assert math.isnan(found.mean_loss)
    assert all(math.isnan(value) for value in found.mean_metrics)
    assert found.losses_U is not None
    assert found.losses_U.tolist() == []


def test_on_its_way_it_is_one_row():
    numbers = StepNumbers.of_step([update(0, has_experts=True)], [torch.tensor(1.0)])
    row = numbers.flat()
    assert (row.shape, row.dtype) == ((7 + 9 + 1,), torch.float64)
    host = numbers.over(row)
    row += 1  # what arrives later
    assert host.count == 2
    assert host.losses_U is not None
    assert host.losses_U.tolist() == [2]
