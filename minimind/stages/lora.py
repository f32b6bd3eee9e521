"""Fine-tuning of low-rank adapters beside a frozen model."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar, cast

from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe, check_patterns, option, option_table
from minimind.data.sample_files import SENTENCES_DATA, SampleData
from minimind.engine.checkpoint import LATEST
from minimind.engine.stage import BuildContext, StageModels
from minimind.errors import CheckpointError, ConfigError
from minimind.model.adapter_folder import (
    BaseModel,
    find_base,
    load_adapter,
    load_model_folder,
    save_adapter,
)
from minimind.model.lora import add_adapters, collect_adapter
from minimind.model.state_dict import linear_parts
from minimind.model.transformer import Transformer
from minimind.stages.adapter_plot import plot_adapter
from minimind.stages.sft import SFT, SFTRecipe

RANK, ALPHA = 16, 32.0
"""One alpha for every rank: with updates scaled by alpha/r the best learning rate hardly depends on
the rank (Schulman et al., "LoRA Without Regret", 2025)."""
PRESETS = ("all", "original")
EVERY = "_proj$"
NAMED = {"attention": "self_attn", "default": EVERY}
"""Patterns by a name of their own; `mlp` is a pattern as it is."""
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Which linears get an adapter of what rank and alpha, by Hugging Face's names."""

    ranks: dict[str, int]
    alphas: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LoraRecipe(SFTRecipe):
    """Options of training adapters."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-4, "tiny": 3e-3}

    epochs: float = option(10.0, "passes over the data")
    lora_preset: str = option(
        "all",
        f"all: every linear of attention and feed-forward, rank {RANK}, alpha {ALPHA:.0f}; "
        f"original: the square ones, rank {RANK}, scale 1",
    )
    lora_ranks: dict[str, int] = option_table(
        "rank by a part of the model, in place of the preset's: attention, mlp, default (what no "
        "other names), or a pattern of names: q_proj, qkv_proj for all three, layers.0.; the last "
        "match counts, 0 means none"
    )
    lora_alphas: dict[str, float] = option_table("alpha by a part of the model or a pattern")
    lora_plot: bool = option(False, "draw |B·A| of every adapter at the end: adapter.png")

    def check(self) -> None:
        super().check()
        if self.lora_preset not in PRESETS:
            raise ConfigError(
                f"lora_preset is {self.lora_preset!r}; it must be one of {', '.join(PRESETS)}"
            )
        if self.lora_ranks and self.lora_preset != PRESETS[0]:
            raise ConfigError(
                f"lora_preset {self.lora_preset} and lora_ranks contradict: give one of them"
            )
        for name, table in (("lora_ranks", self.lora_ranks), ("lora_alphas", self.lora_alphas)):
            check_patterns(name, table)
            if bad := [value for value in table.values() if not 0 <= value < math.inf]:
                raise ConfigError(f"{name} holds {bad[0]}; it must be at least 0")

    def plan(self, config: ModelConfig) -> AdapterPlan:
        """Raises ConfigError for a pattern that no linear's name matches, or if none is chosen."""
        ranks, alphas = {}, {}
        patterns = _default_first(self.lora_ranks) or {EVERY: RANK}
        alpha_patterns = _default_first(self.lora_alphas)
        unmatched = set(patterns) | set(alpha_patterns)
        names = []
        for inside, parts in linear_parts(config).items():
            for part in parts:
                names.append(part.name)
                found = [p for p in patterns if _matches(p, part.name, inside)]
                scaled = [p for p in alpha_patterns if _matches(p, part.name, inside)]
                unmatched -= {*found, *scaled}
                rank = patterns[found[-1]] if found else 0
                if self.lora_preset == "original" and part.num_rows != part.num_columns:
                    rank = 0
                if rank:
                    usual = float(rank) if self.lora_preset == "original" else ALPHA
                    ranks[part.name] = rank
                    alphas[part.name] = alpha_patterns[scaled[-1]] if scaled else usual
        unmatched.discard("default")
        if unmatched or not ranks:
            what = f"no linear's name matches {', '.join(sorted(unmatched))}"
            first = ", ".join(name for name in names if ".layers.0." in name)
            raise ConfigError(
                f"{what if unmatched else 'no linear gets an adapter'}; there is attention, mlp, "
                f"default, or a pattern of the names: {first}, and so on"
            )
        return AdapterPlan(ranks, alphas)

    def count_weights(self, config: ModelConfig) -> tuple[int, int]:
        ranks = self.plan(config).ranks
        parts = (part for parts in linear_parts(config).values() for part in parts)
        trained = sum(ranks.get(p.name, 0) * (p.num_rows + p.num_columns) for p in parts)
        return trained, config.num_parameters


ValueT = TypeVar("ValueT")


def _default_first(table: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Wherever it stands, so that what else matches counts."""
    return {name: table[name] for name in sorted(table, key=lambda name: name != "default")}


def _matches(pattern: str, name: str, inside: str) -> bool:
    """Anywhere in the name on disk, or whole words at the end of the name inside: `qkv_proj` ends
    in `v_proj`, and is not meant by it."""
    pattern = NAMED.get(pattern, pattern)
    inside = inside.removesuffix(".weight")
    return bool(re.search(pattern, name) or re.fullmatch(rf"(.*\.)?({pattern})", inside))


class Lora(SFT):
    """Another model to the same objective: the base frozen, in the dtype that the engine computes
    in and without masters, the adapters trained. Checkpoints hold the adapters alone."""

    name: ClassVar[str] = "lora"
    may_start_fresh: ClassVar[bool] = False
    sample_data: ClassVar[SampleData] = SENTENCES_DATA
    recipe_type: ClassVar[type[Recipe]] = LoraRecipe

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError without weights to start from; CheckpointError where the checkpoint
        to go on from has other adapters, or its base model is gone or has changed."""
        if context.weights_folder is None:
            raise ConfigError(
                "--stage lora keeps only what it adds to trained weights, so it cannot start "
                "fresh: give --from_checkpoint FOLDER"
            )
        if context.checkpoint:
            saved = context.checkpoint / ADAPTER_FOLDER
            _check_same_adapters(cast(LoraRecipe, self.recipe).plan(context.config), saved)
            find_base(saved)

    def outline(self, config: ModelConfig) -> nn.Module:
        recipe, policy = cast(LoraRecipe, self.recipe), cast(Transformer, super().outline(config))
        plan = recipe.plan(config)
        add_adapters(policy, plan.ranks, plan.alphas, recipe.seed)
        return policy

    def build_models(self, context: BuildContext) -> StageModels:
        """Raises what `check` does."""
        recipe = cast(LoraRecipe, self.recipe)
        plan = recipe.plan(context.config)
        self.check(context)
        assert context.weights_folder is not None
        weights = context.weights
        if context.checkpoint:
            saved = context.checkpoint / ADAPTER_FOLDER
            # Not context.weights_folder: a link to the base run's best checkpoint may have moved.
            base = find_base(saved)
            _, weights = load_model_folder(base.folder)
        else:
            base = BaseModel.of(context.weights_folder)
        policy = super().build_models(dataclasses.replace(context, weights=weights)).policy
        policy = cast(Transformer, policy.to(context.dtype))
        add_adapters(policy, plan.ranks, plan.alphas, recipe.seed)

        def save(checkpoint: Path, weights: Mapping[str, Tensor]) -> Path:
            folder = checkpoint / ADAPTER_FOLDER
            save_adapter(folder, context.config, collect_adapter(policy, weights), base)
            return folder

        def finish(run: Path) -> None:
            if recipe.lora_plot:
                adapter = load_adapter(run / "checkpoints" / LATEST / ADAPTER_FOLDER)
                plot_adapter(adapter, run / "adapter.png")

        return StageModels(policy=policy, save=save, finish=finish)


def _check_same_adapters(plan: AdapterPlan, folder: Path) -> None:
    saved = load_adapter(folder)
    for name in [*saved, *plan.ranks]:
        mine = (plan.ranks.get(name, 0), plan.alphas.get(name))
        other = (saved[name].rank, saved[name].alpha) if name in saved else (0, None)
        if mine != other:
            raise CheckpointError(
                f"{folder} has rank {other[0]} and alpha {other[1]} at {name}, not rank {mine[0]} "
                f"and alpha {mine[1]}: resume with the same lora_ranks, lora_alphas and "
                "lora_preset, or start a new run"
            )
