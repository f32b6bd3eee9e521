"""Trajectories laid out: where everything stands, and that none sees the others."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from made_rollouts import CONFIG, SHAPES, alone, made, made_rollouts, own_tokens, plain_log_probs
from small_models import double, gradients, logits_of, pack, random_model

from minimind.stages.policy_loss import PolicyLoss, rollout_log_probs
from minimind.stages.rollout_batch import build_rollout_batch
from minimind.types import IGNORE_INDEX


@pytest.mark.parametrize("counts_tokens", [False, True])
def test_everything_stands_where_a_slow_construction_puts_it(counts_tokens: bool):
    trajectories = made_rollouts()
    batch = build_rollout_batch(trajectories, counts_tokens=counts_tokens)
    ids, positions, labels, starts = [], [], [], [0]
    by_target = []
    for number, one in enumerate(trajectories):
        whole = [*one.prompt.ids, *one.ids]
        own = dict(own_tokens(one))
        for t, token in enumerate(whole[:-1]):
            if t + 1 in own:
                sampled = one.log_probs[t + 1 - len(one.prompt.ids)]
                weight = 1.0 if counts_tokens else 1 / len(own)
                by_target.append((len(ids), own[t + 1], number, weight, one.advantage, sampled))
            labels.append(own.get(t + 1, IGNORE_INDEX))
            ids.append(token)
            positions.append(t)
        starts.append(len(ids))
    assert batch.ids_BT.tolist() == [ids]
    assert batch.labels_BT.tolist() == [labels]
    assert batch.positions_BT.tolist() == [positions]
    assert batch.cu_seqlens.tolist() == starts
    assert batch.bounds == tuple(starts)
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.is_token_BT.tolist() == [[True] * len(ids)]
    assert batch.max_len == max(b - a for a, b in itertools.pairwise(starts))
    assert (batch.num_tokens, batch.num_targets) == (len(ids), len(by_target))
    columns = list(zip(*by_target, strict=True))
    whole_numbers = (batch.indices_R, batch.targets_R, batch.sample_R)
    for found, wanted in zip(whole_numbers, columns[:3], strict=True):
        assert found.tolist() == list(wanted)
    for found, wanted in zip(
        (batch.weights_R, batch.advantages_R, batch.sampled_R), columns[3:], strict=True
    ):
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(list(wanted), rel=1e-6)
    assert batch.rewards_P.tolist() == pytest.approx([one.reward for one in trajectories])
    assert batch.num_samples == len(trajectories) == len(SHAPES)
    assert batch.most_targets == 7
    assert batch.count == (len(by_target) if counts_tokens else len(trajectories))
    assert batch.old_R is None
    assert batch.reference_R is None


def test_the_weights_of_a_trajectory_sum_to_1():
    batch = build_rollout_batch(made_rollouts(), counts_tokens=False)
    sums_P = torch.zeros(batch.num_samples).index_add(0, batch.sample_R, batch.weights_R)
    assert sums_P.tolist() == pytest.approx([1.0] * batch.num_samples)


def test_a_reward_that_is_not_known_is_0():
    batch = build_rollout_batch([made([1], [2], [-1.0], reward=None)], counts_tokens=False)
    assert batch.rewards_P.tolist() == [0.0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_side_by_side_are_those_of_each_trajectory_alone(temperature: float):
    policy = random_model(CONFIG, seed=1)
    trajectories = made_rollouts()
    batch = build_rollout_batch(trajectories, counts_tokens=False)
    with torch.no_grad():
        found = rollout_log_probs(policy, batch, temperature)
        wanted = [
            value for one in trajectories for value in plain_log_probs(policy, one, temperature)
        ]
    assert found.tolist() == pytest.approx(torch.stack(wanted).tolist(), abs=1e-6)


def test_a_trajectory_sees_nothing_of_the_others():
    """In fp64, where the others' sums could not hide a leak."""
    policy = double(random_model(CONFIG, seed=1))
    trajectories = made_rollouts()
    batch = build_rollout_batch(trajectories, counts_tokens=False)
    with torch.no_grad():
        logits_MV = logits_of(policy, batch)
        wanted = [logits_of(policy, pack(alone(one)))[:-1] for one in trajectories]
    torch.testing.assert_close(logits_MV, torch.cat(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("counts_tokens", [False, True])
@pytest.mark.parametrize("by_sequence", [False, True])
def test_what_teaches_nothing_counts_nothing_and_has_a_gradient_of_0(
    counts_tokens: bool, by_sequence: bool
):
    policy = random_model(CONFIG, seed=1)
    batch = build_rollout_batch(made_rollouts()[:1], counts_tokens=counts_tokens, teaches=False)
    assert (batch.count, batch.num_targets, batch.num_samples) == (0, 0, 1)
    assert (batch.labels_BT == IGNORE_INDEX).all()
    assert batch.num_tokens == 9, "a forward has something to read"
    assert rollout_log_probs(policy, batch, 1.0).shape == (0,)
    objective = PolicyLoss(
        loss_type="grpo", beta=0.1, epsilon=0.2, epsilon_high=0.2, by_sequence=by_sequence
    )
    for old_R in (None, torch.zeros(0)):
        ready = replace(batch, old_R=old_R)
        output, log_prob_R = objective.compute(policy, ready)
        assert log_prob_R.shape == (0,)
        loss = output.per_token.sum()
        assert loss.item() == 0
        assert all((g == 0).all() for g in gradients(policy, loss).values())
        metrics = objective.metrics(log_prob_R, ready)
        assert all(value.item() == 0 for value in metrics.values())
