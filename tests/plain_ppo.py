"""Computes PPO's losses, advantages and values in fp64 by plain loops, to check the stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from made_rollouts import CONFIG, alone, own_tokens, plain_log_probs
from small_models import double, pack, random_model
from torch import Tensor

from minimind.stages.actor_critic import ActorCritic
from minimind.stages.ppo import PPORecipe
from minimind.stages.trajectory import Trajectory

NEW_TOKENS = 20


def plain_values(module: ActorCritic, one: Trajectory, weight_D: Tensor) -> list[Tensor]:
    """Gives the critic's value of each of the policy's tokens, from the state before it (fp64)."""
    found: list[Tensor] = []

    def head(hidden_MD: Tensor, _: Tensor) -> Tensor:
        found.append(hidden_MD)
        return hidden_MD.sum(1)

    module.critic(pack(alone(one)), head)
    return [(found[0][place - 1] * weight_D).sum() for place, _ in own_tokens(one)]


def exact_copy(module: ActorCritic) -> tuple[ActorCritic, Tensor]:
    """Gives a copy of both models in fp64, and the weight of its value head."""
    copy = ActorCritic(module.policy.config)
    copy.load_state_dict(module.state_dict())
    copy = copy.double()
    return copy, copy.value_head.weight


def plain_advantages(
    values: list[list[float]], rewards: list[float], gamma: float, lam: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Gives (advantages normalised over all targets, returns), by loops from the last target on."""
    advantages, returns = [], []
    for of_one, reward in zip(values, rewards, strict=True):
        later, found = 0.0, []
        for t in reversed(range(len(of_one))):
            is_last = t == len(of_one) - 1
            worth = reward if is_last else gamma * of_one[t + 1]
            later = worth - of_one[t] + gamma * lam * later
            found.insert(0, later)
        advantages.append(found)
        returns.append([a + v for a, v in zip(found, of_one, strict=True)])
    every = [a for found in advantages for a in found]
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in every) / len(every))
    return [[(a - mean) / deviation for a in found] for found in advantages], returns


def plain_loss(
    module: ActorCritic,
    weight_D: Tensor,
    trajectories: Sequence[Trajectory],
    before: dict[str, list[list[float]]],
    recipe: PPORecipe,
) -> tuple[Tensor, dict[str, float]]:
    """Gives the loss that the recipe means, over all trajectories, and its metrics by name."""
    losses: list[list[Tensor]] = []
    parts: dict[str, list[list[float]]] = {"value_loss": [], "step_kl": [], "kl": []}
    for number, one in enumerate(trajectories):
        pi = plain_log_probs(module.policy, one, recipe.temperature)
        values = plain_values(module, one, weight_D)
        of_one: list[Tensor] = []
        seen: dict[str, list[float]] = {name: [] for name in parts}
        for t, (p, v) in enumerate(zip(pi, values, strict=True)):
            old, reference, said, target, a = (
                before[name][number][t]
                for name in ("old", "reference", "values", "returns", "advantages")
            )
            r = torch.exp(p - old)
            low, high = 1 - recipe.epsilon, 1 + recipe.epsilon
            bound = min(max(r.item(), low), high)
            policy = -min(
                r * a, torch.tensor(bound * a, dtype=torch.float64), key=lambda x: x.item()
            )
            gap = reference - p
            k3 = torch.exp(gap) - gap - 1
            error = (v - target) ** 2
            if recipe.value_epsilon:
                shift = v - said
                if shift.abs() > recipe.value_epsilon:
                    shift = torch.tensor(math.copysign(recipe.value_epsilon, shift.item()))
                other = (said + shift - target) ** 2
                error = other if other > error else error
            of_one.append(policy + recipe.kl_coef * k3 + recipe.value_coef * error)
            seen["value_loss"].append(recipe.value_coef * error.item())
            seen["step_kl"].append(math.exp(p.item() - old) - (p.item() - old) - 1)
            seen["kl"].append(k3.item())
        losses.append(of_one)
        for name, numbers in seen.items():
            parts[name].append(numbers)
    return torch.as_tensor(_mean(losses, recipe.loss_mean)), {
        name: _mean(numbers, "sample" if recipe.loss_mean == "sample" else "token")
        if name != "value_loss"
        else _mean(numbers, recipe.loss_mean)
        for name, numbers in parts.items()
    }


def _mean(numbers: Sequence[Sequence[Any]], loss_mean: str) -> Any:
    if loss_mean == "token":
        every = [x for of_one in numbers for x in of_one]
        return sum(every) / len(every)
    sums = [
        sum(of_one) / (NEW_TOKENS if loss_mean == "length" else len(of_one)) for of_one in numbers
    ]
    return sum(sums) / len(sums)


def look_before(
    module: ActorCritic, trajectories: Sequence[Trajectory], recipe: PPORecipe
) -> dict[str, list[list[float]]]:
    """Gives what the loss needs from before the first update, by name, trajectory and target."""
    exact, weight_D = exact_copy(module)
    reference = double(random_model(CONFIG, seed=1))
    temperature = recipe.temperature
    with torch.no_grad():
        found: dict[str, Any] = {
            "old": [plain_log_probs(exact.policy, one, temperature) for one in trajectories],
            "reference": [plain_log_probs(reference, one, temperature) for one in trajectories],
            "values": [plain_values(exact, one, weight_D) for one in trajectories],
        }
    found = {name: [[x.item() for x in row] for row in rows] for name, rows in found.items()}
    rewards = [one.reward or 0.0 for one in trajectories]
    found["advantages"], found["returns"] = plain_advantages(
        found["values"], rewards, recipe.gamma, recipe.gae_lambda
    )
    return found
