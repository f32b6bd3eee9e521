"""A step of PPO ends early once the policy is too far from where the step began."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from labelled_answers import OtherRank, engine_of
from made_rollouts import made_rollouts
from small_ppo import batches_of, build, set_apart

from minimind.stages.actor_critic import ActorCritic
from minimind.stages.policy_loss import rollout_log_probs
from minimind.stages.rollout_batch import RolloutBatch


def step_kl_of(module: ActorCritic, batches: Sequence[RolloutBatch]) -> float:
    """Gives the divergence from where the step began, over the targets of an update."""
    gaps = []
    for batch in batches:
        assert batch.old_R is not None
        gaps += (rollout_log_probs(module, batch, 1.0) - batch.old_R).tolist()
    return sum(math.exp(gap) - gap - 1 for gap in gaps) / len(gaps)


def test_a_step_ends_once_the_policy_is_too_far_from_where_it_began(tmp_path: Path):
    stage, _, module = build(tmp_path)
    engine = engine_of(module)
    batches = batches_of(made_rollouts(), counts_tokens=True)[0]
    with torch.no_grad():
        (batches,) = stage.look_back(engine, [batches])
        assert step_kl_of(module, batches) == pytest.approx(0.0, abs=1e-9)
        assert not stage.stops_before(engine, batches)
        set_apart(module, 0.1, seed=3)
        divergence = step_kl_of(module, batches)
        assert divergence > 0.05
        for factor, stops in ((0.99, True), (1.01, False), (0.0, False)):
            stage.recipe = replace(stage.recipe, kl_stop=factor * divergence)
            assert stage.stops_before(engine, batches) is stops, factor


def test_all_ranks_end_a_step_together(tmp_path: Path):
    """The mean is over the targets of all ranks, not over ranks."""
    stage, _, module = build(tmp_path)
    batches = batches_of(made_rollouts(), counts_tokens=True)[0]
    engine = OtherRank(module=module)
    with torch.no_grad():
        (batches,) = stage.look_back(engine_of(module), [batches])
        mine = sum(batch.num_targets for batch in batches)
        for mean, stops in ((0.24, False), (0.26, True)):
            engine.others = torch.tensor([mean * (mine + 3), 3.0]).double()
            assert stage.stops_before(engine.typed, batches) is stops
