"""Trains by group relative policy optimisation: answers to the same prompt are compared with one
another, and the better ones become likelier."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe, check_one_of, option
from minimind.data.loader import PackedLoader
from minimind.data.prompt_format import PromptBatch
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext, Policy, StageModels
from minimind.errors import ConfigError
from minimind.lora.model import adapters_off
from minimind.lora.options import AdapterOptions
from minimind.runtime.devices import send
from minimind.runtime.seeds import derive_seed
from minimind.stages.advantages import mean_and_deviation
from minimind.stages.lora import Lora
from minimind.stages.policy_loss import METRICS, LossType, PolicyLoss, rollout_log_probs
from minimind.stages.pretrain import Pretrain
from minimind.stages.rollout_batch import RolloutBatch
from minimind.stages.rollout_measures import has_spread
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.trajectory import Trajectory
from minimind.types import LossSum

LOSS_TYPES = ("grpo", "cispo")
RATIO_LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")
_STD_EPS = 1e-4
_ADAPTER_RATE = 10.0
"""The factor on the whole model's learning rate when only adapters are trained (Schulman et al.,
"LoRA Without Regret", 2025)."""
_EPSILON_HIGH = {"cispo": 4.0}
"""The default of epsilon_high by loss_type, where it is not the same as epsilon."""


@dataclass(frozen=True, kw_only=True)
class GRPORecipe(RolloutRecipe, AdapterOptions):
    """Defines the options of group relative policy optimisation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 3e-7, "tiny": 2e-4}

    lora_preset: str = option(
        "none", "adapters to train in place of the model: all, original, or none; see --stage lora"
    )
    loss_type: str = option("grpo", f"{' or '.join(LOSS_TYPES)}")
    beta: float = option(0.1, "weight of the KL divergence from the reference (0: no reference)")
    epsilon: float = option(0.2, "grpo: lower clipping bound of the ratio, 1 - epsilon")
    epsilon_high: float | None = option(
        None, "upper bound, 1 + epsilon_high; DAPO has 0.28 (default: epsilon; with cispo 4)"
    )
    ratio_level: str = option("token", "ratios of each token, or of a whole sequence (GSPO)")
    scale_rewards: str = option(
        "group", "advantages are divided by the rewards' deviation in the group, the batch, or none"
    )
    dynamic_sampling: int = option(
        0, "at most this often, replace prompts whose answers all have the same reward (DAPO)"
    )

    def check(self) -> None:
        super().check()
        check_one_of("loss_type", self.loss_type, LOSS_TYPES)
        check_one_of("ratio_level", self.ratio_level, RATIO_LEVELS)
        check_one_of("scale_rewards", self.scale_rewards, SCALES)
        self.check_at_least(beta=0, epsilon=0, epsilon_high=0, dynamic_sampling=0)
        if self.num_generations < 2:
            raise ConfigError(
                f"num_generations is {self.num_generations}: an answer is judged beside others to "
                "its prompt, so at least 2 are needed (--stage ppo does with one)"
            )
        if self.top_k == 1:
            raise ConfigError(
                "top_k is 1: all answers to a prompt would be the same, and their advantages 0; "
                "give 0 (all tokens) or more than 1"
            )
        if self.loss_type == "cispo" and self.ratio_level != "token":
            raise ConfigError("loss_type cispo has ratios of tokens: ratio_level must be token")

    @property
    def usual_rates(self) -> Mapping[str, float]:
        factor = _ADAPTER_RATE if self.has_adapters else 1.0
        return {preset: rate * factor for preset, rate in self.learning_rates.items()}


class GRPO(RolloutStage):
    """Computes the advantage of each answer as A = (R - mean)/(σ + 1e-4), where R is its reward,
    and mean and σ are the mean and the population deviation of the rewards of all answers to its
    prompt (Shao et al. 2024). PolicyLoss is the loss."""

    name: ClassVar[str] = "grpo"
    recipe_type: ClassVar[type[Recipe]] = GRPORecipe
    metric_names: ClassVar[tuple[str, ...]] = ("reward", *METRICS)

    recipe: GRPORecipe

    def __init__(self, recipe: GRPORecipe) -> None:
        super().__init__(recipe)
        high = recipe.epsilon_high
        if high is None:
            high = _EPSILON_HIGH.get(recipe.loss_type, recipe.epsilon)
        self.objective = PolicyLoss(
            loss_type=cast(LossType, recipe.loss_type),
            beta=recipe.beta,
            epsilon=recipe.epsilon,
            epsilon_high=high,
            by_sequence=recipe.ratio_level == "sequence",
            sampler_cap=recipe.sampler_cap,
            temperature=recipe.temperature,
            length=recipe.loss_length,
        )

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where there are no weights to start from, or a reward or tool cannot
        be imported; CheckpointError where the adapters of the checkpoint to continue do not fit."""
        super().check(context)
        if self.recipe.has_adapters:
            Lora(self.recipe).check(context)

    def outline(self, config: ModelConfig) -> nn.Module:
        trains = Lora if self.recipe.has_adapters else Pretrain
        return trains(self.recipe).outline(config)

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds the policy, with adapters if the recipe has them, and the frozen reference if
        `beta` is not 0. Call `check` first: only its part about adapters is repeated here."""
        self.get_ready(context)
        if self.recipe.has_adapters:  # the frozen base is the reference
            return Lora(self.recipe).build_models(context)
        models = Pretrain(self.recipe).build_models(context)
        return self.with_reference(models, context) if self.helper_folder(context) else models

    def helper_folder(self, context: BuildContext) -> Path | None:
        has_reference = self.recipe.beta and not self.recipe.has_adapters
        return context.weights_folder if has_reference else None

    def collect(
        self, engine: DeepSpeedEngine, micro_batches: Sequence[PromptBatch], step: int
    ) -> list[list[list[Trajectory]]]:
        """Gives the scored answers, by micro-batch and prompt. With dynamic sampling, a prompt
        whose answers all have the same reward is replaced by another prompt of the data; the draw
        depends on the seed, the step and the micro-batch only."""
        by_micro = super().collect(engine, micro_batches, step)
        loader = cast(PackedLoader, self.loader)
        for attempt in range(self.recipe.dynamic_sampling):
            idle = [sum(not has_spread(group) for group in groups) for groups in by_micro]
            if not engine.any_rank(any(idle)):
                break
            dice = random.Random(derive_seed(self.recipe.seed, "refill", step, attempt))
            other = loader.batches(dice.randrange(loader.steps(1.0)))
            prompts = []
            known = {group[0].prompt.unit for of_micro in by_micro for group in of_micro}
            known |= {group[0].prompt.unit for group in self.set_aside}
            for batch, number in zip(other, idle, strict=True):
                read = cast(PromptBatch, batch).prompts
                fresh = [prompt for prompt in read if prompt.unit not in known]
                prompts.append(fresh[:number])
            found = self.answer(engine, prompts, (step, "refill", attempt))
            for groups, fresh in zip(by_micro, found, strict=True):
                self._replace_idle(groups, fresh)
        return by_micro

    def _replace_idle(
        self, groups: list[list[Trajectory]], fresh: Sequence[list[Trajectory]]
    ) -> None:
        better = [group for group in fresh if has_spread(group)]
        self.set_aside += [group for group in fresh if not has_spread(group)]
        for place, group in enumerate(groups):
            if better and not has_spread(group):
                self.set_aside.append(group)
                groups[place] = better.pop(0)

    def is_kept(self, group: Sequence[Trajectory]) -> bool:
        return not self.recipe.dynamic_sampling or has_spread(group)

    def set_advantages(self, engine: DeepSpeedEngine, groups: Sequence[list[Trajectory]]) -> None:
        """Sets each advantage by comparing the answer's reward with those of its group; where all
        are equal, the advantages are 0."""
        known = [[one for one in group if one.reward is not None] for group in groups]
        centred: list[tuple[Trajectory, float, float]] = []
        for group in known:
            rewards = [cast(float, one.reward) for one in group]
            mean = math.fsum(rewards) / max(len(rewards), 1)
            deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / max(len(rewards), 1))
            if has_spread(group):
                centred += [
                    (one, r - mean, deviation) for one, r in zip(group, rewards, strict=True)
                ]
        of_batch = 1.0
        if self.recipe.scale_rewards == "batch":
            rewards = [cast(float, one.reward) for group in known for one in group]
            sent = send(rewards, engine.device, torch.float64)
            of_batch = mean_and_deviation(engine, sent)[1].item()
        for one, above_mean, of_group in centred:
            scale = {"group": of_group + _STD_EPS, "batch": of_batch + _STD_EPS, "none": 1.0}
            one.advantage = above_mean / scale[self.recipe.scale_rewards]

    def look_back(
        self, engine: DeepSpeedEngine, parts: Sequence[Sequence[RolloutBatch]]
    ) -> list[list[RolloutBatch]]:
        """Adds to each batch the log-probabilities before the first update, if a step has several
        updates, and those under the reference."""

        def remember(batch: RolloutBatch) -> RolloutBatch:
            old_R = None
            if self.recipe.updates_per_step > 1:
                old_R = rollout_log_probs(engine, batch, self.recipe.temperature)
            reference_R = self.reference_log_probs(engine, batch)
            return replace(batch, old_R=old_R, reference_R=reference_R)

        return [[remember(batch) for batch in batches] for batches in parts]

    def reference_log_probs(self, engine: DeepSpeedEngine, batch: RolloutBatch) -> Tensor | None:
        """Gives the log-probability of each target under the reference; where adapters are trained,
        the reference is the policy with its adapters off."""
        if not (self.recipe.has_adapters and self.recipe.beta):
            return super().reference_log_probs(engine, batch)
        with adapters_off(engine.module):
            return rollout_log_probs(engine, batch, self.recipe.temperature)

    def loss(self, policy: Policy, batch: RolloutBatch) -> LossSum:
        with self.measures.time("forward"):
            output, log_prob_R = self.objective.compute(policy, batch)
        reward = log_prob_R.new_full((), self.measures.mean_reward * batch.count)
        return LossSum(
            total=output.per_token.sum(),
            aux_loss=output.aux_loss,
            metrics={"reward": reward, **self.objective.metrics(log_prob_R, batch)},
        )
