"""What a resolved run is refused for: one list, which a dry run and a real one go through before
anything is built."""

from __future__ import annotations

import importlib.util

import torch

from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.engine.deepspeed_engine import check_ds_config
from minimind.engine.parameter_groups import parameter_groups
from minimind.errors import ConfigError
from minimind.model.flash_attention import check_flash, why_not_flash
from minimind.monitors.start import check_monitors
from minimind.run.folder import check_folder
from minimind.run.inputs import build_context
from minimind.run.resolve import ResolvedRun
from minimind.stages import STAGES


def check_run(run: ResolvedRun, tokenizer: Tokenizer, start: Checkpoint | None = None) -> None:
    """Raises a MiniMindError for what could not run on this machine. `start`: the checkpoint that
    it goes on from."""
    folder = check_folder(run)
    check_monitors(run.ds_config, folder, resumed=run.arguments.resume)
    check_packages(run)
    check_flash(run.device.torch_device, deterministic=run.recipe.deterministic)
    check_graphs(run)
    stage = STAGES[run.stage](run.recipe)
    stage.check(build_context(run, tokenizer, start))
    check_scheduler(run)
    parameter_groups(stage.outline(run.config), run.recipe)
    check_ds_config(run.ds_config, run.device)


def check_graphs(run: ResolvedRun) -> None:
    """Raises ConfigError where CUDA graphs are asked for and a micro-batch cannot be one."""
    if run.recipe.cuda_graph and (problem := _why_not_graphed(run)):
        raise ConfigError(f"cuda_graph=true, but {problem}")


def _why_not_graphed(run: ResolvedRun) -> str | None:
    device = run.device.torch_device
    if device.type != "cuda":
        return "the run is on a CPU"
    if not STAGES[run.stage].is_static:
        return f"the loss of --stage {run.stage} is laid out by the host, anew for each batch"
    if run.zero_stage == 3:
        return "ZeRO stage 3 gathers the weights anew in each forward: use stage 2 or below"
    if run.recipe.activation_checkpointing:
        return "activation_checkpointing recomputes with the host's help: use one of the two"
    is_here = torch.cuda.is_available() and not torch.version.hip
    capability = torch.cuda.get_device_capability(device) if is_here else None
    return why_not_flash(run.dtype, run.config.head_dim, capability)


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
    """Raises ConfigError for an optimizer whose package is not installed."""
    kind = run.ds_config["optimizer"]["type"]
    if kind.lower() in ("muadam", "muadamw", "musgd") and not importlib.util.find_spec("mup"):
        raise ConfigError(f"optimizer.type {kind} needs mup installed: pip install mup")
