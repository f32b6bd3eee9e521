"""What a resolved run is refused for: one list, which a dry run and a real one go through before
anything is built."""

from __future__ import annotations

import importlib.util
from typing import Any

from minimind.config.deepspeed_json import load_ds_config
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.engine.deepspeed_engine import check_ds_config
from minimind.engine.parameter_groups import parameter_groups
from minimind.errors import ConfigError
from minimind.model.flash_attention import check_flash
from minimind.run.describe import predict_memory_of
from minimind.run.folder import check_folder
from minimind.run.inputs import build_context
from minimind.run.resolve import ResolvedRun
from minimind.runtime.ranks import Ranks
from minimind.stages import STAGES

_MONITORS = {"comet": "comet_ml", "tensorboard": "tensorboard", "wandb": "wandb"}
"""The package of each section of the DeepSpeed JSON."""


def check_run(
    run: ResolvedRun, tokenizer: Tokenizer, ranks: Ranks, start: Checkpoint | None = None
) -> None:
    """Raises a MiniMindError for what could not run on these ranks of this machine. `start`: the
    checkpoint that it goes on from."""
    check_folder(run)
    check_packages(run)
    check_flash(run.device.torch_device, deterministic=run.recipe.deterministic)
    stage = STAGES[run.stage](run.recipe)
    stage.check(build_context(run, tokenizer, start))
    check_scheduler(run)
    parameter_groups(stage.outline(run.config), run.recipe)
    check_memory(run, ranks)
    check_ds_config(run.ds_config, run.device)


def check_scheduler(run: ResolvedRun) -> None:
    """Raises ConfigError where the DeepSpeed JSON's scheduler, which has one rate and counts
    updates, cannot do what the stage asks for."""
    if not run.ds_config.get("scheduler"):
        return
    instead = "remove it: the recipe's own schedule does"
    if run.recipe.rate_factors != run.recipe.lr_factors:
        raise ConfigError(
            f"--stage {run.stage} has two learning rates, and the scheduler of the DeepSpeed JSON "
            f"one: {instead}"
        )
    if run.recipe.updates_per_step > 1:
        raise ConfigError(
            f"a step takes {run.recipe.updates_per_step} updates, each of which the scheduler of "
            f"the DeepSpeed JSON would count as a step: {instead}"
        )


def check_packages(run: ResolvedRun) -> None:
    """Raises ConfigError for a logger or optimizer whose package is not installed."""
    if run.recipe.swanlab and not _is_installed("swanlab"):
        raise ConfigError("swanlab=true needs it installed: pip install swanlab")
    for section, package in _MONITORS.items():
        enabled = (run.ds_config.get(section) or {}).get("enabled")
        if enabled and not _is_installed(package):
            raise ConfigError(
                f"{section}.enabled of the DeepSpeed JSON needs it installed: pip install "
                f"{package}, or --set ds_config.{section}.enabled=false"
            )
    kind = run.ds_config["optimizer"]["type"]
    if kind.lower() in ("muadam", "muadamw", "musgd") and not _is_installed("mup"):
        raise ConfigError(f"optimizer.type {kind} needs mup installed: pip install mup")


def _is_installed(package: str) -> bool:
    """A folder of that name where the run starts is none: loggers leave such folders."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_memory(run: ResolvedRun, ranks: Ranks) -> None:
    """Raises ConfigError where the step's tensors alone, which are counted and not estimated, are
    more than the memory there is, free or not; swap is not memory."""
    there = run.device.memory_bytes
    # Ranks on CPUs share the machine's.
    sharing = ranks.local_world_size if run.device.kind == "cpu" else 1
    needed = sharing * predict_memory_of(run).peak_bytes
    if there is None or needed <= there:
        return
    fitting = (
        n
        for n in range(run.micro_batch_size - 1, 0, -1)
        if run.train_batch_size % (n * run.world_size) == 0
        and sharing * predict_memory_of(run.with_micro_batch(n)).peak_bytes <= there
    )
    micro = next(fitting, None)
    raise ConfigError(
        f"memory about {needed / 2**30:.2f} GiB{f' for {sharing} ranks' * (sharing > 1)}, more "
        f"than the {there / 2**30:.2f} GiB of {run.device.name}: "
        + (
            _spell_micro_batch(run, micro)
            if micro
            else "no micro-batch fits; take a smaller --model, a shorter --seq_len, --set "
            "activation_checkpointing=true, or --ds_config zero2_offload.json or zero3.json"
        )
    )


def _spell_micro_batch(run: ResolvedRun, micro: int) -> str:
    """As it can be given beside what the JSON gives itself."""
    accumulation = run.train_batch_size // (micro * run.world_size)
    text = f"a micro-batch of {micro} rows fits: "
    file = load_ds_config(run.arguments.get("ds_config"), run.arguments.ds_config)
    given: dict[str, Any] = {}
    if isinstance(file.get("train_micro_batch_size_per_gpu"), int):
        given["train_micro_batch_size_per_gpu"] = micro
    if isinstance(file.get("gradient_accumulation_steps"), int):
        given["gradient_accumulation_steps"] = accumulation
        given["train_batch_size"] = run.train_batch_size
    sets = [f"--set ds_config.{key}={value}" for key, value in given.items()]
    if "train_micro_batch_size_per_gpu" not in given:
        sets.append(f"--set micro_batch_size={micro}")
    return text + " ".join(sets)
