"""Trains low-rank adapters beside a frozen base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe, option
from minimind.engine.stage import BuildContext, StageModels
from minimind.errors import CheckpointError, ConfigError
from minimind.lora.folder import LATEST, BaseModel, find_base, load_adapter, load_model_folder
from minimind.lora.model import add_adapters, collect_adapter
from minimind.lora.options import AdapterOptions, AdapterRanks
from minimind.lora.peft_format import save_adapter
from minimind.lora.plot import plot_adapter
from minimind.model.transformer import Transformer
from minimind.samples.files import SENTENCES_DATA, SampleData
from minimind.stages.sft import SFT, SFTRecipe

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, kw_only=True)
class LoraRecipe(AdapterOptions, SFTRecipe):
    """Defines the options of fine-tuning adapters."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-4, "tiny": 3e-3}

    epochs: float = option(10.0, "passes over the data")

    def check(self) -> None:
        super().check()
        if not self.has_adapters:
            raise ConfigError("lora_preset none trains the whole model: that is --stage sft")


class Lora(SFT):
    """Trains adapters with SFT's loss. The base model is frozen, in the dtype that the engine
    computes in and without fp32 masters; checkpoints hold the adapters only."""

    name: ClassVar[str] = "lora"
    may_start_fresh: ClassVar[bool] = False
    sample_data: ClassVar[SampleData] = SENTENCES_DATA
    recipe_type: ClassVar[type[Recipe]] = LoraRecipe

    recipe: AdapterOptions

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where there are no weights to start from; CheckpointError where the
        checkpoint to continue has other adapters, or its base model is missing or has changed."""
        if context.weights_folder is None:
            raise ConfigError(
                "--stage lora keeps only what it adds to trained weights, so it cannot start "
                "fresh: give --from_checkpoint FOLDER"
            )
        if context.checkpoint:
            saved = context.checkpoint / ADAPTER_FOLDER
            _check_same_adapters(self.recipe.choose_ranks(context.config), saved, context.config)
            find_base(saved)

    def outline(self, config: ModelConfig) -> nn.Module:
        policy = cast(Transformer, super().outline(config))
        chosen = self.recipe.choose_ranks(config)
        add_adapters(policy, chosen.ranks, chosen.alphas, self.recipe.seed)
        return policy

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds the frozen base with its adapters. Raises the errors of `check`."""
        recipe = self.recipe
        chosen = recipe.choose_ranks(context.config)
        self.check(context)
        assert context.weights_folder is not None
        weights = context.weights
        if context.checkpoint:
            saved = context.checkpoint / ADAPTER_FOLDER
            # Not from context.weights_folder: a link to the base run's best checkpoint may have
            # moved.
            base = find_base(saved)
            _, weights = load_model_folder(base.folder)
        else:
            base = BaseModel.of(context.weights_folder)
        policy = super().build_models(dataclasses.replace(context, weights=weights)).policy
        policy = cast(Transformer, policy.to(context.dtype))
        add_adapters(policy, chosen.ranks, chosen.alphas, recipe.seed)

        def save(checkpoint: Path, weights: Mapping[str, Tensor]) -> Path:
            folder = checkpoint / ADAPTER_FOLDER
            save_adapter(folder, context.config, collect_adapter(policy, weights), base)
            return folder

        def finish(run: Path) -> None:
            if recipe.lora_plot:
                saved = run / "checkpoints" / LATEST / ADAPTER_FOLDER
                plot_adapter(load_adapter(saved, context.config), run / "adapter.png")

        return StageModels(policy=policy, save=save, finish=finish)


def _check_same_adapters(chosen: AdapterRanks, folder: Path, config: ModelConfig) -> None:
    saved = load_adapter(folder, config)
    for name in [*saved, *chosen.ranks]:
        mine = (chosen.ranks.get(name, 0), chosen.alphas.get(name))
        other = (saved[name].rank, saved[name].alpha) if name in saved else (0, None)
        if mine != other:
            raise CheckpointError(
                f"{folder} has rank {other[0]} and alpha {other[1]} at {name}, not rank {mine[0]} "
                f"and alpha {mine[1]}: resume with the same lora_ranks, lora_alphas and "
                "lora_preset, or start a new run"
            )
