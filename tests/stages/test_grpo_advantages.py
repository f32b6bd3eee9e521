"""What GRPO makes of rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from labelled_answers import OtherRank, engine_of
from made_rollouts import rewarded
from torch import nn

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.stages.grpo import GRPO, GRPORecipe
from minimind.stages.trajectory import Trajectory

REWARDS: list[list[float | None]] = [
    [1.0, 0.0, 0.0, 0.5],
    [2.0, None, -1.0, None],
    [0.3, 0.3, 0.3, 0.3],
    [None, 1e6, None, None],
    [None, None, None, None],
    [5.0, 1.0, 1.0, 1.0],
]
NAMES = ("group", "batch", "none")


def engine() -> DeepSpeedEngine:
    return engine_of(nn.Linear(1, 1))


def groups_of(rewards: list[list[float | None]]) -> list[list[Trajectory]]:
    return [rewarded(of_group, unit) for unit, of_group in enumerate(rewards)]


def advantages(rewards: list[list[float | None]], **options: Any) -> list[list[float]]:
    groups = groups_of(rewards)
    GRPO(GRPORecipe(**options)).set_advantages(engine(), groups)
    return [[one.advantage for one in group] for group in groups]


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def plain(rewards: list[list[float | None]], scale: str) -> list[list[float]]:
    of_batch = deviation([r for of_group in rewards for r in of_group if r is not None])
    found = []
    for of_group in rewards:
        known = [r for r in of_group if r is not None]
        by = {"none": 1.0, "batch": of_batch + 1e-4}
        if known:
            by["group"] = deviation(known) + 1e-4
        found.append(
            [0.0 if r is None else (r - sum(known) / len(known)) / by[scale] for r in of_group]
        )
    return found


@pytest.mark.parametrize("scale", NAMES)
def test_rewards_are_compared_in_their_group(scale: str):
    """Those that are not known are left out of every mean and deviation; the only known one of its
    group, and equal ones, teach nothing but count in the batch's deviation."""
    found = advantages(REWARDS, scale_rewards=scale)
    for of_group, wanted in zip(found, plain(REWARDS, scale), strict=True):
        assert of_group == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_the_population_deviation_is_meant():
    """As in the paper and not as in TRL, which divides by one less than the group's size."""
    ((up, down),) = advantages([[1.0, 0.0]])
    assert up == -down == pytest.approx(0.5 / (0.5 + 1e-4))


@pytest.mark.parametrize("scale", NAMES)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1e9, 0.0])
def test_equal_rewards_give_exactly_0(scale: str, reward: float):
    """Though a mean of them may round to something else."""
    found = advantages([[reward] * 3, [0.0, 1.0, 0.0]], scale_rewards=scale)
    assert found[0] == [0.0] * 3
    assert all(found[1])


@pytest.mark.parametrize("scale", NAMES)
def test_advantages_of_a_group_sum_to_0(scale: str):
    for of_group in advantages(REWARDS, scale_rewards=scale):
        assert sum(of_group) == pytest.approx(0.0, abs=1e-9)


def test_without_rewards_there_are_no_advantages():
    for scale in NAMES:
        assert advantages([], scale_rewards=scale) == []
        assert advantages([[None, None]], scale_rewards=scale) == [[0.0, 0.0]]


def test_a_penalty_counts_as_reward():
    groups = groups_of([[1.0, 1.0]])
    groups[0][0].penalty = 0.4
    GRPO(GRPORecipe(scale_rewards="none")).set_advantages(engine(), groups)
    assert [one.advantage for one in groups[0]] == pytest.approx([-0.2, 0.2])


def test_the_batch_is_that_of_all_ranks():
    here, there = REWARDS[:2], REWARDS[2:]
    whole = advantages(REWARDS, scale_rewards="batch")
    fake = OtherRank()
    known = [r for of_group in there for r in of_group if r is not None]
    fake.others = torch.tensor([sum(known), sum(r**2 for r in known), len(known)]).double()
    groups = groups_of(here)
    GRPO(GRPORecipe(scale_rewards="batch")).set_advantages(fake.typed, groups)
    for group, wanted in zip(groups, whole, strict=False):
        assert [one.advantage for one in group] == pytest.approx(wanted, rel=1e-9)
