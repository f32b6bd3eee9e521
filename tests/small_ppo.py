"""Builds PPO over a small policy and its critic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from labelled_answers import TOKENIZER, save
from made_rollouts import CONFIG, move
from plain_ppo import NEW_TOKENS
from small_models import random_model, small_config

from minimind.config.model import ModelConfig
from minimind.engine.stage import BuildContext, StageModels
from minimind.stages.actor_critic import ActorCritic
from minimind.stages.ppo import PPO, PPORecipe
from minimind.stages.rollout_batch import RolloutBatch, build_rollout_batch
from minimind.stages.trajectory import Trajectory

DEFAULTS = {"seq_len": 64, "max_new_tokens": NEW_TOKENS, "learning_rate": 1e-3}
UNTIED = small_config(tie_word_embeddings=False)
SPLITS = [[(0, 2), (2, 3)], [(3, 5)]]
"""The trajectories of each micro-batch, by update."""


def build(
    tmp_path: Path, config: ModelConfig = CONFIG, **options: Any
) -> tuple[PPO, StageModels, ActorCritic]:
    model = random_model(config, seed=1)
    folder = save(model, tmp_path / "start")
    stage = PPO(PPORecipe(**{**DEFAULTS, **options}))
    stage.recipe.check()
    models = stage.build_models(
        BuildContext(
            config=config,
            weights=dict(model.named_parameters()),
            weights_folder=folder,
            tokenizer=TOKENIZER,
        )
    )
    return stage, models, cast(ActorCritic, models.policy)


def set_apart(module: ActorCritic, amount: float, seed: int) -> None:
    """Moves all weights, the value head's off 0 too."""
    move(module, module, amount, seed)


def batches_of(
    trajectories: Sequence[Trajectory], *, counts_tokens: bool
) -> list[list[RolloutBatch]]:
    return [
        [build_rollout_batch(trajectories[a:b], counts_tokens=counts_tokens) for a, b in update]
        for update in SPLITS
    ]
