"""Trains by proximal policy optimisation: a critic learns to predict the reward from each token on,
and tokens that turn out better than it predicted become likelier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe, option
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext, Policy, StageModels
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.stages.actor_critic import ActorCritic, ActorCriticOutput, count_critic_weights
from minimind.stages.advantages import estimate_advantages, mean_and_deviation
from minimind.stages.policy_loss import METRICS, PolicyLoss, k3, log_prob_head, rollout_log_probs
from minimind.stages.rollout_batch import RolloutBatch
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.trajectory import Trajectory
from minimind.types import LossSum

_CRITIC = r"^(critic|value_head)\."
_STD_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class PPORecipe(RolloutRecipe):
    """Defines the options of proximal policy optimisation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 3e-7, "tiny": 1e-4}

    critic_learning_rate: float | None = option(
        None, "peak learning rate of the critic (default: 5/3 of the policy's)"
    )
    num_generations: int = option(1, "answers to each prompt")
    inner_epochs: int = option(2, "times that each answer is learned from")
    loss_mean: str = option("token", "the loss is a mean over: token, sample or length, see grpo")
    kl_coef: float = option(0.02, "weight of the KL divergence from the reference (0: none)")
    epsilon: float = option(0.2, "clipping bounds of a token's ratio, 1 - epsilon and 1 + epsilon")
    value_epsilon: float = option(0.2, "clipping bound of a value's change (0: no clipping)")
    value_coef: float = option(0.5, "weight of the values' squared error")
    gamma: float = option(1.0, "discount factor of the reward, per token")
    gae_lambda: float = option(0.95, "lambda of generalised advantage estimation, 0 to 1")
    kl_stop: float = option(
        0.25,
        "end a step once the policy's KL from its state before the step is above this (0: never)",
    )

    @property
    def rate_factors(self) -> dict[str, float]:
        factor = 5 / 3
        if self.critic_learning_rate is not None and self.learning_rate:
            factor = self.critic_learning_rate / self.learning_rate
        return {_CRITIC: factor, **self.lr_factors}

    def count_weights(self, config: ModelConfig) -> tuple[int, int]:
        return config.num_parameters + count_critic_weights(config), 0

    def check(self) -> None:
        super().check()
        self.check_at_least(
            critic_learning_rate=0, kl_coef=0, epsilon=0, value_epsilon=0, value_coef=0, kl_stop=0
        )
        self.check_from_0_to_1("gamma", "gae_lambda")


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOBatch(RolloutBatch):
    """Holds trajectories, and the critic's values of their targets before the step's first
    update."""

    values_R: Tensor
    """fp32 [R]: the critic's values before the step's first update."""
    returns_R: Tensor
    """fp32 [R]: the returns, which the critic is trained to predict."""


class PPO(RolloutStage):
    """Adds a value loss to PolicyLoss. The advantages are those of stages/advantages.py, normalised
    over all targets of the step. With V the critic's value of a target, old its value before the
    step's first update, ret its return and ε_v = value_epsilon, the value loss is

        value_coef · max((V - ret)², (old + clip(V - old, -ε_v, ε_v) - ret)²).
    """

    name: ClassVar[str] = "ppo"
    recipe_type: ClassVar[type[Recipe]] = PPORecipe
    metric_names: ClassVar[tuple[str, ...]] = ("reward", *METRICS, "value_loss", "step_kl")

    recipe: PPORecipe

    def __init__(self, recipe: PPORecipe) -> None:
        super().__init__(recipe)
        self.objective = PolicyLoss(
            loss_type="grpo",
            beta=recipe.kl_coef,
            epsilon=recipe.epsilon,
            epsilon_high=recipe.epsilon,
            sampler_cap=recipe.sampler_cap,
            temperature=recipe.temperature,
            length=recipe.loss_length,
        )

    def outline(self, config: ModelConfig) -> nn.Module:
        with torch.device("meta"):
            return ActorCritic(config)

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds policy and critic as one module, where the critic starts from the policy's
        weights, and the frozen reference if `kl_coef` is not 0. Call `check` first: it is not
        repeated here."""
        self.get_ready(context)
        module = ActorCritic(context.config)
        for model in (module.policy, module.critic):
            model.activation_checkpointing = self.recipe.activation_checkpointing
            if context.weights is not None:
                model.load_named(context.weights)

        def save(checkpoint: Path, weights: Mapping[str, Tensor]) -> Path:
            folder, mark = checkpoint / "model", "policy."
            of_policy = {n.removeprefix(mark): w for n, w in weights.items() if n.startswith(mark)}
            save_hf_folder(folder, context.config, of_policy, torch.float32)
            return folder

        models = StageModels(policy=module, save=save)
        return self.with_reference(models, context) if self.helper_folder(context) else models

    def helper_folder(self, context: BuildContext) -> Path | None:
        return context.weights_folder if self.recipe.kl_coef else None

    def find_policy(self, module: nn.Module) -> Transformer:
        return cast(ActorCritic, module).policy

    def set_advantages(self, engine: DeepSpeedEngine, groups: Sequence[list[Trajectory]]) -> None:
        """Does nothing: `look_back` computes an advantage for each token from the critic's
        values."""

    def look_back(
        self, engine: DeepSpeedEngine, parts: Sequence[Sequence[RolloutBatch]]
    ) -> list[list[RolloutBatch]]:
        """Adds to each batch the log-probabilities before the first update, those under the
        reference, the critic's values, the returns and the normalised advantages."""
        found = [[self._judge_tokens(engine, batch) for batch in batches] for batches in parts]
        every = [batch.advantages_R for batches in found for batch in batches]
        if not every:
            return []
        mean, deviation = mean_and_deviation(engine, torch.cat(every))

        def normalise(batch: RolloutBatch) -> RolloutBatch:
            wide_R = (batch.advantages_R.double() - mean) / (deviation + _STD_EPS)
            return replace(batch, advantages_R=wide_R.float())

        return [[normalise(batch) for batch in batches] for batches in found]

    def _judge_tokens(self, engine: DeepSpeedEngine, batch: RolloutBatch) -> PPOBatch:
        head = log_prob_head(batch, self.recipe.temperature)
        output = cast(ActorCriticOutput, engine(batch, head=head))
        advantages_R, returns_R = estimate_advantages(
            output.values_R,
            batch.rewards_P,
            batch.sample_R,
            longest=batch.most_targets,
            gamma=self.recipe.gamma,
            lam=self.recipe.gae_lambda,
        )
        batch = replace(
            batch,
            old_R=output.per_token,
            reference_R=self.reference_log_probs(engine, batch),
            advantages_R=advantages_R,
        )
        return batch.extend(PPOBatch, values_R=output.values_R, returns_R=returns_R)

    def loss(self, policy: Policy, batch: RolloutBatch) -> LossSum:
        """Sums the policy loss and the value loss over the batch's targets, weighted for the
        recipe's mean."""
        batch, recipe = cast(PPOBatch, batch), self.recipe
        with self.measures.time("forward"):
            output, log_prob_R = self.objective.compute(policy, batch)
        values_R = cast(ActorCriticOutput, output).values_R
        error_R = (values_R - batch.returns_R).square()
        if recipe.value_epsilon:
            moved_R = (values_R - batch.values_R).clamp(-recipe.value_epsilon, recipe.value_epsilon)
            clipped_R = (batch.values_R + moved_R - batch.returns_R).square()
            error_R = torch.maximum(error_R, clipped_R)
        value_loss = recipe.value_coef * self.objective.weigh(error_R, batch).sum()
        assert batch.old_R is not None
        with torch.no_grad():
            step_kl_R = k3(batch.old_R, log_prob_R)
            reward = log_prob_R.new_full((), self.measures.mean_reward * batch.count)
            more = {
                "value_loss": value_loss.detach(),
                "step_kl": (step_kl_R * batch.weights_R).sum(),
            }
        return LossSum(
            total=output.per_token.sum() + value_loss,
            aux_loss=output.aux_loss,
            metrics={"reward": reward, **self.objective.metrics(log_prob_R, batch), **more},
        )

    def stops_before(self, engine: DeepSpeedEngine, batches: Sequence[RolloutBatch]) -> bool:
        """Tells whether the policy has moved further than `kl_stop` since the step began, measured
        on the next update's batches. Only with a limit does a step wait for this number; all ranks
        agree."""
        if not self.recipe.kl_stop:
            return False
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        engine.train(False)
        for batch in batches:
            assert batch.old_R is not None
            log_prob_R = rollout_log_probs(engine, batch, self.recipe.temperature)
            kl_R = k3(batch.old_R, log_prob_R).double()
            sums += torch.stack([kl_R, torch.ones_like(kl_R)]).sum(1)
        engine.train()
        total, count = engine.sum_over_ranks(sums).tolist()
        return total / max(count, 1.0) > self.recipe.kl_stop
