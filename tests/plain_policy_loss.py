"""Computes GRPO's loss plainly, in fp64, and makes what it is computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from made_rollouts import (
    CONFIG,
    Numbers,
    apart,
    made_rollouts,
    moved,
    plain_log_probs,
    rounded,
    with_numbers,
)
from small_models import double, random_model
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.model.transformer import Transformer
from minimind.stages.grpo import GRPO, GRPORecipe
from minimind.stages.policy_loss import METRICS
from minimind.stages.rollout_batch import RolloutBatch, build_rollout_batch
from minimind.stages.trajectory import Trajectory

SEQ_LEN = 64
NEW_TOKENS = 20


@dataclass
class Given:
    """What a loss is computed from."""

    policy: Transformer
    trajectories: list[Trajectory]
    batch: RolloutBatch
    old: Numbers | None
    reference: Numbers | None


def stage_of(options: dict[str, Any]) -> GRPO:
    recipe = GRPORecipe(
        **{"seq_len": SEQ_LEN, "learning_rate": 1.0, "max_new_tokens": NEW_TOKENS, **options}
    )
    recipe.check()
    return GRPO(recipe)


def give(
    stage: GRPO,
    *,
    has_old: bool,
    trajectories: list[Trajectory] | None = None,
    config: ModelConfig = CONFIG,
) -> Given:
    """Old log-probabilities lie on both sides of the policy's and far enough off to be clipped."""
    recipe = stage.recipe
    policy = random_model(config, seed=1)
    if trajectories is None:
        trajectories = made_rollouts(vocab=config.vocab_size)
    with torch.no_grad():
        now = [plain_log_probs(double(policy), one, recipe.temperature) for one in trajectories]
        other = double(moved(config, policy, 0.05, seed=2))
        then = [plain_log_probs(other, one, recipe.temperature) for one in trajectories]
    old = apart(rounded(now), 0.4, seed=13) if has_old else None
    reference = rounded(then) if recipe.beta else None
    draw_near(trajectories, old or rounded(now))
    batch = build_rollout_batch(trajectories, counts_tokens=recipe.loss_mean == "token")
    batch = with_numbers(batch, old=old, reference=reference)
    return Given(policy, trajectories, batch, old, reference)


def draw_near(trajectories: list[Trajectory], old: Numbers) -> None:
    """Has the sampler have seen each token a little otherwise than the trainer."""
    for one, of_one in zip(trajectories, apart(old, 0.2, seed=4), strict=True):
        rest = iter(of_one)
        one.log_probs = [None if x is None else next(rest) for x in one.log_probs]


def sampled_of(one: Trajectory) -> list[float]:
    wide = [value for value in one.log_probs if value is not None]
    return torch.tensor(wide, dtype=torch.float32).tolist()


def plain_means(
    model: Transformer, given: Given, options: dict[str, Any]
) -> tuple[Tensor, dict[str, float]]:
    """(the loss, the metrics), each the mean that is meant, as the papers have them."""
    recipe = stage_of(options).recipe
    is_cispo = recipe.loss_type == "cispo"
    high = recipe.epsilon_high
    if high is None:
        high = 4.0 if is_cispo else recipe.epsilon
    losses: list[list[Tensor]] = []
    metrics: dict[str, Numbers] = {name: [] for name in METRICS}
    for number, one in enumerate(given.trajectories):
        pi = plain_log_probs(model, one, recipe.temperature)
        old = [x.detach() for x in pi]
        if given.old is not None:
            old = [torch.tensor(x).double() for x in given.old[number]]
        ratios = [torch.exp(p - o) for p, o in zip(pi, old, strict=True)]
        if recipe.ratio_level == "sequence":
            gap = sum(p - o for p, o in zip(pi, old, strict=True)) / len(pi)
            ratios = [torch.exp(torch.as_tensor(gap))] * len(pi)
        of_one: list[Tensor] = []
        seen: dict[str, list[float]] = {name: [] for name in METRICS}
        for t, (p, o, r) in enumerate(zip(pi, old, ratios, strict=True)):
            advantage = torch.tensor(one.advantage, dtype=torch.float32).double()
            if is_cispo:
                is_clipped = r > 1 + high
                loss = -(1 + high if is_clipped else r.detach()) * advantage * p
            elif advantage > 0:
                is_clipped = r > 1 + high
                loss = -advantage * (1 + high) if is_clipped else -advantage * r
            else:
                is_clipped = r < 1 - recipe.epsilon
                loss = -advantage * (1 - recipe.epsilon) if is_clipped else -advantage * r
            sampled = sampled_of(one)[t]
            if recipe.sampler_cap:
                loss = loss * min(math.exp(o.item() - sampled), recipe.sampler_cap)
            kl = math.nan
            if given.reference is not None:
                gap = given.reference[number][t] - p
                k3 = torch.exp(gap) - gap - 1
                loss, kl = loss + recipe.beta * k3, k3.item()
            of_one.append(loss)
            seen["kl"].append(kl)
            seen["entropy"].append(-p.item())
            seen["clip_share"].append(float(is_clipped))
            seen["sampler_gap"].append(abs(o.item() - sampled))
        losses.append(of_one)
        for name, values in seen.items():
            metrics[name].append(values)
    flat_losses = [x for of_one in losses for x in of_one]
    if recipe.loss_mean == "token":
        loss = sum(flat_losses) / len(flat_losses)
    elif recipe.loss_mean == "length":
        loss = sum(flat_losses) / NEW_TOKENS / len(losses)
    else:
        loss = sum(sum(of_one) / len(of_one) for of_one in losses) / len(losses)
    return torch.as_tensor(loss), {
        name: mean(values, over_tokens=recipe.loss_mean == "token")
        for name, values in metrics.items()
    }


def mean(numbers: Numbers, *, over_tokens: bool) -> float:
    if over_tokens:
        values = [x for of_one in numbers for x in of_one]
        return sum(values) / len(values)
    return sum(sum(of_one) / len(of_one) for of_one in numbers) / len(numbers)
