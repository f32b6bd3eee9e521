"""Generalised advantage estimation against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimind.stages.advantages import estimate_advantages

LENGTHS = (7, 1, 12, 3, 1)
CORNERS = [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.97, 1.0)]


def given(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(values_R, rewards_P, sample_R)."""
    generator = torch.Generator().manual_seed(seed)
    values_R = torch.randn(sum(lengths), generator=generator)
    rewards_P = 3 * torch.randn(len(lengths), generator=generator)
    return values_R, rewards_P, torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def plain(
    values_R: Tensor, rewards_P: Tensor, sample_R: Tensor, gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """As the paper has it, from each trajectory's end to its beginning."""
    advantages, returns = [], []
    for number, reward in enumerate(rewards_P.tolist()):
        values = values_R[sample_R == number].tolist()
        behind, later = 0.0, 0.0
        found = []
        for t in reversed(range(len(values))):
            delta = (reward if t == len(values) - 1 else 0.0) + gamma * behind - values[t]
            later = delta + gamma * lam * later
            found.insert(0, later)
            behind = values[t]
        advantages += found
        returns += [a + v for a, v in zip(found, values, strict=True)]
    return advantages, returns


@pytest.mark.parametrize(("gamma", "lam"), CORNERS)
@pytest.mark.parametrize("longest", [12, 40])
def test_advantages_and_returns_are_those_of_a_loop(gamma: float, lam: float, longest: int):
    """Whatever bound there is on the lengths."""
    values_R, rewards_P, sample_R = given()
    found = estimate_advantages(
        values_R, rewards_P, sample_R, longest=longest, gamma=gamma, lam=lam
    )
    wanted = plain(values_R, rewards_P, sample_R, gamma, lam)
    for value_R, plain_R in zip(found, wanted, strict=True):
        assert value_R.dtype == torch.float32
        assert value_R.tolist() == pytest.approx(plain_R, rel=1e-6, abs=1e-6)


def test_with_lambda_1_the_critic_is_a_mere_baseline():
    values_R, rewards_P, sample_R = given()
    advantages_R, returns_R = estimate_advantages(
        values_R, rewards_P, sample_R, longest=12, gamma=1.0, lam=1.0
    )
    torch.testing.assert_close(advantages_R, rewards_P[sample_R] - values_R)
    torch.testing.assert_close(returns_R, rewards_P[sample_R])


def test_with_lambda_0_each_token_is_judged_by_the_next_value():
    values_R, rewards_P, sample_R = given((3, 1))
    _, returns_R = estimate_advantages(values_R, rewards_P, sample_R, longest=3, gamma=0.5, lam=0.0)
    r, v = rewards_P.tolist(), values_R.tolist()
    assert returns_R.tolist() == pytest.approx([0.5 * v[1], 0.5 * v[2], r[0], r[1]])


def test_a_trajectory_without_targets_takes_no_part():
    """Its place among the others is kept."""
    values_R, rewards_P, _ = given((2, 3))
    sample_R = torch.tensor([0, 0, 2, 2, 2])
    rewards_P = torch.stack([rewards_P[0], torch.tensor(100.0), rewards_P[1]])
    found = estimate_advantages(values_R, rewards_P, sample_R, longest=3, gamma=0.9, lam=0.7)
    wanted = plain(values_R, rewards_P, sample_R, 0.9, 0.7)
    for value_R, plain_R in zip(found, wanted, strict=True):
        assert value_R.tolist() == pytest.approx(plain_R, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("longest", [0, 5])
def test_an_empty_batch_has_no_advantages(longest: int):
    for found_R in estimate_advantages(
        torch.zeros(0), torch.ones(1), torch.zeros(0, dtype=torch.int64),
        longest=longest, gamma=1.0, lam=0.95,
    ):  # fmt: skip
        assert found_R.shape == (0,)
        assert found_R.dtype == torch.float32


def test_long_answers_lose_nothing():
    """2,000 tokens with the decay of PPO's defaults."""
    values_R, rewards_P, sample_R = given((2000, 5))
    found = estimate_advantages(values_R, rewards_P, sample_R, longest=2000, gamma=1.0, lam=0.95)
    wanted = plain(values_R, rewards_P, sample_R, 1.0, 0.95)
    for value_R, plain_R in zip(found, wanted, strict=True):
        torch.testing.assert_close(value_R, torch.tensor(plain_R), rtol=1e-5, atol=1e-5)
