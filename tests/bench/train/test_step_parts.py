"""Where a step's time goes, and what it says to other ranks: found from outside, to the last."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bench.train.step_parts import PARTS, StepParts
from minimind.engine.process_group import start_ranks
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import read_ranks

CPU = torch.device("cpu")


class SlowGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(0.02)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.04)
        return grad


class SlowModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self) -> torch.Tensor:
        return SlowGradient.apply(self.weight).sum()  # type: ignore[union-attr]


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.03)
        return super().step(closure)


@pytest.fixture
def _one_rank() -> None:
    start_ranks(read_ranks(), find_device())


def test_each_part_gets_its_own_time() -> None:
    model = SlowModel()
    optimizer = SlowSGD(model.parameters(), lr=0.1)
    start = time.perf_counter()
    with StepParts(model, CPU) as parts:
        for _ in range(2):
            model().backward()
            time.sleep(0.01)
        optimizer.step()
    took = time.perf_counter() - start
    assert set(parts.seconds) == set(PARTS)
    assert sum(parts.seconds.values()) <= took
    assert parts.seconds["forward"] >= 0.04
    assert parts.seconds["backward"] >= 0.08
    assert parts.seconds["engine"] >= 0.02
    assert parts.seconds["optimizer"] >= 0.03
    assert parts.seconds["communication"] == parts.seconds["data_wait"] == 0
    before = dict(parts.seconds)
    model().backward()
    assert parts.seconds == before, "it watches no longer"


@pytest.mark.usefixtures("_one_rank")
def test_collectives_are_counted_by_kind_and_payload() -> None:
    model = SlowModel()
    model.weight.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad))
    with StepParts(model, CPU) as parts:
        model().backward()
        work = dist.all_reduce(torch.ones(5, dtype=torch.float64), async_op=True)
        assert work is not None
        work.wait()
        dist.all_gather_into_tensor(torch.empty(7), torch.ones(7))
        dist.broadcast(torch.ones(3), 0)
    assert parts.to_dict()["collectives"] == {
        "all_gather": {"calls": 1, "payload_bytes": 28},
        "all_reduce": {"calls": 2, "payload_bytes": 4000 + 40},
        "broadcast": {"calls": 1, "payload_bytes": 12},
    }
    assert parts.seconds["communication"] > 0
    assert parts.seconds["backward"] >= 0.04


def test_recomputed_activations_stay_backward() -> None:
    model = SlowModel()
    nn.Module.register_forward_pre_hook(model, lambda *_: None)
    block = nn.Linear(4, 4)
    with StepParts(block, CPU) as parts:
        x = torch.ones(2, 4, requires_grad=True)
        y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=True)
        assert isinstance(y, torch.Tensor)
        y.sum().backward()
    assert parts.seconds["backward"] > 0
