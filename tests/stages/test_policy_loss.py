"""The loss of a policy's own tokens against the formulas written out, token by token in fp64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_rollouts import made_rollouts, own_tokens, with_numbers
from plain_policy_loss import NEW_TOKENS, give, plain_means, stage_of
from small_models import assert_same_gradients, double, gradients
from torch import Tensor

from minimind.stages.policy_loss import METRICS, rollout_log_probs
from minimind.stages.rollout_batch import build_rollout_batch

MEANS = ("sample", "token", "length")
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "without KL": {"beta": 0.0},
    "clip-higher": {"epsilon": 0.1, "epsilon_high": 0.4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.3},
    "cispo, its bound": {"loss_type": "cispo", "beta": 0.0},
    "sequence": {"ratio_level": "sequence", "epsilon": 0.05},
    "sequence, by length": {"ratio_level": "sequence", "epsilon": 0.05, "loss_mean": "length"},
    "sampler": {"sampler_cap": 1.1},
    "sampler of a sequence": {"sampler_cap": 1.1, "ratio_level": "sequence"},
    "sampler, cispo": {"sampler_cap": 2.0, "loss_type": "cispo", "epsilon_high": 0.3},
    "cold": {"temperature": 0.7},
    "mean over tokens": {"loss_mean": "token", "epsilon_high": 0.3},
    "sum by length": {"loss_mean": "length"},
    "everything": {
        "loss_mean": "token",
        "temperature": 1.4,
        "sampler_cap": 1.5,
        "epsilon": 0.15,
        "epsilon_high": 0.28,
        "beta": 0.04,
    },
}


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_metrics_are_those_of_the_formula(case: str, has_old: bool):
    stage = stage_of(CASES[case])
    given = give(stage, has_old=has_old)
    loss = stage.loss(given.policy, given.batch)
    exact = double(given.policy)
    expected, metrics = plain_means(exact, given, CASES[case])
    total = loss.total / given.batch.count
    assert total.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert_same_gradients(gradients(given.policy, total), gradients(exact, expected))
    for name in METRICS:
        value = loss.metrics[name]
        assert not value.requires_grad
        wanted = pytest.approx(metrics[name], rel=1e-4, abs=1e-6, nan_ok=True)
        assert value.item() / given.batch.count == wanted, name


def test_the_cases_above_reach_every_branch():
    """Clipped and unclipped tokens with an advantage of either sign, and a capped sampler."""
    given = give(stage_of({}), has_old=True)
    batch = given.batch
    assert batch.old_R is not None
    gap_R = rollout_log_probs(given.policy, batch, 1.0) - batch.old_R
    for sign in (1, -1):
        of_sign = gap_R[batch.advantages_R.sign() == sign]
        assert (of_sign > math.log(1.3)).any()
        assert (of_sign < math.log(0.8)).any()
        assert (of_sign.abs() < math.log(1.2)).any()
    weight_R = (batch.old_R - batch.sampled_R).exp()
    assert (weight_R > 1.1).any()
    assert (weight_R < 1.1).any()
    sequence = {"ratio_level": "sequence", "epsilon": 0.05}
    clipped = stage_of(sequence).loss(given.policy, batch).metrics["clip_share"].item()
    assert 0 < clipped < batch.count


@pytest.mark.parametrize("loss_mean", MEANS)
def test_at_a_ratio_of_1_a_sequences_ratio_has_the_gradient_of_its_tokens(loss_mean: str):
    """Whether the old log-probabilities are left out or are the policy's own."""
    found = []
    for level in ("token", "sequence"):
        stage = stage_of({"ratio_level": level, "loss_mean": loss_mean})
        given = give(stage, has_old=False)
        policy = double(given.policy)
        found.append(gradients(policy, stage.loss(policy, given.batch).total))
        old_R = rollout_log_probs(policy, given.batch, 1.0)
        batch = replace(given.batch, old_R=old_R)
        found.append(gradients(policy, stage.loss(policy, batch).total))
    for other in found[1:]:
        assert_same_gradients(other, found[0], 1e-6)


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("options", [{}, {"loss_type": "cispo"}, {"ratio_level": "sequence"}])
def test_without_advantages_there_is_no_gradient_but_that_of_the_divergence(
    options: dict[str, Any], has_old: bool
):
    idle = made_rollouts()
    for one in idle:
        one.advantage = 0.0
    stage = stage_of({**options, "beta": 0.0})
    given = give(stage, has_old=has_old, trajectories=idle)
    loss = stage.loss(given.policy, given.batch).total
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients(given.policy, loss).values())

    stage = stage_of({**options, "beta": 0.1})
    given = give(stage, has_old=has_old, trajectories=idle)
    loss = stage.loss(given.policy, given.batch)
    divergence = 0.1 * loss.metrics["kl"].item()
    assert divergence > 0
    assert loss.total.item() == pytest.approx(divergence, rel=1e-5)


def test_the_divergence_from_oneself_is_0_with_a_gradient_of_0():
    stage = stage_of({"beta": 1.0})
    idle = made_rollouts()
    for one in idle:
        one.advantage = 0.0
    given = give(stage, has_old=False, trajectories=idle)
    policy = double(given.policy)
    own_R = rollout_log_probs(policy, given.batch, 1.0)
    loss = stage.loss(policy, replace(given.batch, reference_R=own_R))
    assert loss.total.item() == pytest.approx(0.0, abs=1e-12)
    assert all(g.abs().max() < 1e-12 for g in gradients(policy, loss.total).values())


@pytest.mark.parametrize("loss_mean", MEANS)
@pytest.mark.parametrize("options", [{}, {"ratio_level": "sequence"}, {"loss_type": "cispo"}])
def test_a_step_is_the_same_however_it_is_divided(options: dict[str, Any], loss_mean: str):
    """Sums over micro-batches, divided by the sum of their counts; one of them teaches nothing."""
    options = {**options, "loss_mean": loss_mean}
    stage = stage_of(options)
    given = give(stage, has_old=True)
    policy = double(given.policy)
    assert given.old is not None
    assert given.reference is not None
    whole = stage.loss(policy, given.batch).total / given.batch.count
    total: Tensor | float = 0.0
    counts = 0
    for first, last in ((0, 2), (2, 3), (3, 5)):
        batch = build_rollout_batch(
            given.trajectories[first:last], counts_tokens=loss_mean == "token"
        )
        batch = with_numbers(
            batch, old=given.old[first:last], reference=given.reference[first:last]
        )
        total = total + stage.loss(policy, batch).total
        counts += batch.count
    idle = build_rollout_batch(given.trajectories[:1], counts_tokens=False, teaches=False)
    idle = with_numbers(idle, old=[], reference=[])
    total = total + stage.loss(policy, idle).total
    counts += idle.count
    assert counts == given.batch.count
    found = torch.as_tensor(total) / counts
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    assert_same_gradients(gradients(policy, found), gradients(policy, whole), 1e-6)


def test_a_long_answer_weighs_as_the_mean_says():
    """The gradient of each token by its log-probability: 1 / (its answer's tokens), 1 / all tokens
    or 1 / max_new_tokens."""
    for loss_mean in MEANS:
        stage = stage_of({"loss_mean": loss_mean, "beta": 0.0})
        given = give(stage, has_old=False)
        log_prob_R = rollout_log_probs(given.policy, given.batch, 1.0).detach().requires_grad_()
        loss = stage.objective.loss(log_prob_R, given.batch, slice(None)).sum()
        (slope_R,) = torch.autograd.grad(loss / given.batch.count, log_prob_R)
        lengths = [len(own_tokens(one)) for one in given.trajectories]
        wanted = []
        for one, length in zip(given.trajectories, lengths, strict=True):
            share = {
                "sample": 1 / length / len(lengths),
                "token": 1 / sum(lengths),
                "length": 1 / NEW_TOKENS / len(lengths),
            }
            wanted += [-one.advantage * share[loss_mean]] * length
        assert slope_R.tolist() == pytest.approx(wanted, rel=1e-5)
