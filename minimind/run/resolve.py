"""Resolves the user's options to a run in which every value is filled in and checked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minimind.config.deepspeed_json import (
    Hardware,
    load_ds_config,
    precision,
    resolve,
    with_total_steps,
    zero_stage,
)
from minimind.config.deepspeed_optimizers import optimizer_type
from minimind.config.model import FOLLOWS_TOKENIZER, PRESETS, ModelConfig, load_model_config
from minimind.config.monitors import switch_monitors
from minimind.config.recipe import Recipe, replace_fields
from minimind.data.loader import PackedLoader
from minimind.data.same_tokens import has_tokenizer
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.errors import CheckpointError, ConfigError
from minimind.lora.folder import find_model_folder, load_folder_config, tokenizer_folder
from minimind.run.arguments import TrainArguments
from minimind.runtime.devices import DTYPES, Device
from minimind.runtime.ranks import Ranks
from minimind.runtime.versions import versions
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """Holds all values of a run: enough to run it, and to run it again."""

    arguments: TrainArguments
    stage: str
    model_name: str
    config: ModelConfig
    recipe: Recipe
    ds_config: dict[str, Any]
    weights_folder: Path | None
    device: Device
    world_size: int

    @property
    def seq_len(self) -> int:
        assert self.recipe.seq_len is not None
        return self.recipe.seq_len

    @property
    def train_batch_size(self) -> int:
        assert self.recipe.train_batch_size is not None
        return self.recipe.train_batch_size

    @property
    def micro_batch_size(self) -> int:
        assert self.recipe.micro_batch_size is not None
        return self.recipe.micro_batch_size

    @property
    def dtype(self) -> torch.dtype:
        """Gives the dtype in which the engine computes."""
        return DTYPES[precision(self.ds_config)]

    @property
    def zero_stage(self) -> int:
        return zero_stage(self.ds_config)

    @property
    def learning_rate(self) -> float:
        """Gives the peak learning rate, scaled to the batch if the recipe says so. Scaling with the
        square root of the batch keeps the size of Adam's noise (Malladi et al. 2022)."""
        rate, reference = self.recipe.learning_rate, self.recipe.scale_lr_with_batch
        assert rate is not None
        return rate * math.sqrt(self.train_batch_size / reference) if reference else rate

    @property
    def has_own_tokenizer(self) -> bool:
        """Tells whether the user gave --tokenizer, which may differ from the checkpoint's."""
        return self.arguments.get("tokenizer") is not None

    @property
    def is_chat(self) -> bool:
        """Tells whether the stage trains on conversations, not on text."""
        return not STAGES[self.stage].data_format.all_targets

    @property
    def num_trained(self) -> int:
        return self.recipe.count_weights(self.config)[0]

    @property
    def flops_per_token(self) -> int:
        """Gives the FLOPs per token: for each weight two for the forward, two for the gradient of
        its input and two for the gradient of the weight. A frozen weight has no gradient, and the
        weights of adapters are added."""
        trained, frozen = self.recipe.count_weights(self.config)
        whole = self.config.flops_per_token(self.seq_len)
        met = self.config.num_active_parameters if frozen else 0
        return whole + 6 * (trained + frozen - self.config.num_parameters) - 2 * met

    def total_steps(self, loader: PackedLoader) -> int:
        """Gives the number of optimizer steps in the whole run."""
        return self.recipe.max_steps or loader.steps(self.recipe.epochs)

    def with_total_steps(self, loader: PackedLoader) -> ResolvedRun:
        """Gives the same run with the number of steps filled in where the DeepSpeed JSON's
        scheduler has "auto" for it."""
        ds_config = with_total_steps(self.ds_config, self.total_steps(loader))
        return dataclasses.replace(self, ds_config=ds_config)

    @property
    def facts(self) -> dict[str, Any]:
        """Gives the values that must be the same on every rank, by name."""
        return {
            "kind of device": self.device.kind,
            "precision": precision(self.ds_config),
            "stage": self.stage,
            "model": self.config.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "DeepSpeed JSON": self.ds_config,
        }

    def to_dict(self) -> dict[str, Any]:
        """Gives the content of run.json."""
        return {
            "arguments": self.arguments.to_dict(),
            "stage": self.stage,
            "model": self.config.to_dict(),
            "num_parameters": self.config.num_parameters,
            "num_trained": self.num_trained,
            "recipe": dataclasses.asdict(self.recipe),
            "ds_config": self.ds_config,
            "device": self.device.name,
            "world_size": self.world_size,
            "versions": versions(),
        }


def resolve_run(
    arguments: TrainArguments, tokenizer: Tokenizer, ranks: Ranks, device: Device
) -> ResolvedRun:
    """Resolves a run. Raises ConfigError or CheckpointError where options, model, tokenizer and
    checkpoint do not fit together."""
    stage = STAGES[arguments.get("stage")]
    config, weights_folder, model_name = _resolve_model(arguments, tokenizer)
    _check_vocabulary(tokenizer, config, weights_folder)
    recipe = replace_fields(stage.recipe_type(), arguments.recipe, f"--stage {stage.name}")
    sizes = stage.recipe_type.sizes(device.kind, model_name)
    overrides = switch_monitors(arguments.get("monitor") or (), arguments.ds_config)
    ds_config = load_ds_config(arguments.get("ds_config"), overrides)
    given = set(arguments.recipe)
    fill = {}
    if recipe.learning_rate is None:
        optimizer = optimizer_type(ds_config, recipe, given)
        rates = dataclasses.replace(recipe, optimizer=optimizer).usual_rates
        fill["learning_rate"] = rates.get(model_name, rates[""])
    if recipe.seq_len is None:
        fill["seq_len"] = min(sizes.seq_len, config.max_position_embeddings)
    recipe = dataclasses.replace(recipe, **fill)
    recipe.check()
    if recipe.seq_len and recipe.seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"seq_len {recipe.seq_len} is beyond the model's max_position_embeddings "
            f"{config.max_position_embeddings}: give --seq_len {config.max_position_embeddings} or "
            f"less, or --set max_position_embeddings={recipe.seq_len}"
        )
    hardware = Hardware(device.kind, ranks.world_size, device.precision)
    ds_config, recipe = resolve(
        ds_config, recipe, given, sizes, hardware, *recipe.count_weights(config)
    )
    return ResolvedRun(
        arguments=arguments,
        stage=stage.name,
        model_name=model_name,
        config=config,
        recipe=recipe,
        ds_config=ds_config,
        weights_folder=weights_folder,
        device=device,
        world_size=ranks.world_size,
    )


def find_tokenizer(arguments: TrainArguments) -> Tokenizer:
    """Loads the tokenizer of --tokenizer, else of the checkpoint, else of the sample data."""
    if folder := arguments.get("tokenizer"):
        return Tokenizer.load(folder)
    checkpoint = arguments.get("from_checkpoint")
    if checkpoint and checkpoint != "none":
        model = tokenizer_folder(find_model_folder(Path(checkpoint)))
        if not has_tokenizer(model):
            raise ConfigError(f"{model} brings no tokenizer: give its own with --tokenizer")
        return Tokenizer.load(model)
    return load_sample_tokenizer()


def _resolve_model(
    arguments: TrainArguments, tokenizer: Tokenizer
) -> tuple[ModelConfig, Path | None, str]:
    stage = STAGES[arguments.get("stage")]
    checkpoint = arguments.get("from_checkpoint")
    name = arguments.get("model")
    if checkpoint is None and stage.needs_checkpoint:
        raise ConfigError(
            f"--stage {stage.name} starts from trained weights: give --from_checkpoint FOLDER "
            "(make one with: minimind train --stage pretrain --output_dir FOLDER)"
            + (", or --from_checkpoint none to start fresh" if stage.may_start_fresh else "")
        )
    if checkpoint is None or checkpoint == "none":
        config = load_model_config(name, arguments.model, tokenizer_vocab=tokenizer.vocab_size)
        return config, None, name
    if "model" in arguments.run:
        raise ConfigError(
            f"--model {name} contradicts --from_checkpoint {checkpoint}, which brings its own model"
        )
    folder = find_model_folder(Path(checkpoint))
    config = load_folder_config(folder)
    changeable = {"dropout", "rope_scaling", "rope_theta", "max_position_embeddings"}
    changeable |= {"norm_topk_prob", "router_aux_loss_coef", "seq_aux"}
    if fixed := sorted(set(arguments.model) - changeable):
        raise ConfigError(
            f"--set {fixed[0]} would change the shape of the model of {folder}; of its model only "
            f"{', '.join(sorted(changeable))} can change. A fresh one of any shape: "
            "--from_checkpoint none --model PRESET"
        )
    config = ModelConfig.from_dict(config.to_dict() | arguments.model, f"--set over {folder}")
    return config, folder, _preset_like(config)


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, folder: Path | None) -> None:
    """Raises ConfigError where the model's vocabulary is smaller than the tokenizer's."""
    if folder is None:
        tokenizer.check_fits(config.vocab_size)
    elif tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.origin} has {tokenizer.vocab_size} tokens, the model of "
            f"{folder} only {config.vocab_size}, which it was trained with: leave out --tokenizer, "
            "and the checkpoint's own is used, or train a fresh model on this tokenizer "
            "(--stage pretrain without --from_checkpoint)"
        )


def _preset_like(config: ModelConfig) -> str:
    """Gives the preset with as many parameters, whose micro-batch and learning rate are then used;
    "" where there is none."""
    for name in PRESETS:
        vocab = config.vocab_size if name in FOLLOWS_TOKENIZER else None
        preset = load_model_config(name, tokenizer_vocab=vocab)
        if preset.num_parameters == config.num_parameters:
            return name
    return ""


def check_same_run(start: Checkpoint, run: ResolvedRun, fingerprint: str) -> None:
    """Raises CheckpointError where the checkpoint belongs to another run, and names what differs:
    stage, model, data or batch. `fingerprint` is the loader's."""
    meta = start.meta
    if meta["stage"] != run.stage:
        raise CheckpointError(f"{start.folder} is of --stage {meta['stage']}, not {run.stage}")
    model = run.config.to_dict()
    if changed := [name for name, value in model.items() if meta["model"].get(name) != value]:
        raise CheckpointError(
            f"{start.folder} holds another model ({', '.join(changed)} differ): resume with the "
            "same --model and fields, or start a new run"
        )
    if meta["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{start.folder} was trained on other data, another tokenizer, row length or seed: "
            "resume with the same, or start a new run with --from_checkpoint"
        )
    rows = meta["recipe"].get("train_batch_size")
    if rows != run.train_batch_size:
        raise CheckpointError(
            f"{start.folder} took {rows} rows a step, not {run.train_batch_size}: the order of "
            f"the data would change. Resume with --batch_size {rows}"
        )
