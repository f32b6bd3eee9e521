"""Refuses resolved runs that cannot work: one list of checks for dry runs and real runs, made
before anything is built. `check_data` follows once the data is tokenised."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from minimind.config.deepspeed_optimizers import is_muon
from minimind.config.deepspeed_schedulers import check_length
from minimind.data.loader import EvalLoader, PackedLoader
from minimind.data.mixture import SAMPLE_PREFIX
from minimind.data.same_tokens import check_folder_tokens
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint, check_same_helpers
from minimind.engine.deepspeed_engine import check_ds_config
from minimind.engine.parameter_groups import parameter_groups, trained_matrices
from minimind.errors import ConfigError
from minimind.lora.folder import find_base, find_model_folder, is_adapter_folder
from minimind.model.flash_attention import check_flash, why_not_flash
from minimind.monitors.start import check_monitors
from minimind.run.folder import check_folder
from minimind.run.inputs import build_context, hash_helpers
from minimind.run.resolve import ResolvedRun
from minimind.stages import STAGES


def check_run(run: ResolvedRun, tokenizer: Tokenizer, start: Checkpoint | None = None) -> None:
    """Raises a MiniMindError for a run that could not work on this machine. `start` is the
    checkpoint that it continues."""
    check_arguments(run)
    folder = check_folder(run)
    check_monitors(run.ds_config, folder, resumed=run.arguments.resume)
    check_packages(run)
    stage = STAGES[run.stage](run.recipe)
    context = build_context(run, tokenizer, start)
    check_tokenizer(run, tokenizer, start)
    check_new_tokenizer(run, stage.helper_folder(context))
    check_flash(run.device.torch_device, deterministic=run.recipe.deterministic)
    check_graphs(run)
    stage.check(context)
    if start:
        check_same_helpers(start, hash_helpers(stage, context))
    check_scheduler(run)
    outline = stage.outline(run.config)
    parameter_groups(outline, run.recipe)
    if is_muon(run.ds_config["optimizer"]["type"]) and not trained_matrices(outline):
        raise ConfigError(
            "the optimizer Muon is for the model's matrices, and this run trains none of them: "
            "take AdamW, as with --set optimizer=AdamW"
        )
    check_ds_config(run.ds_config, run.device)


def check_tokenizer(run: ResolvedRun, tokenizer: Tokenizer, start: Checkpoint | None) -> None:
    """Raises ConfigError where the tokenizer gives ids another meaning than the weights that the
    run starts from or continues."""
    if start:
        check_folder_tokens(
            tokenizer, find_model_folder(start.folder), "Resume with the tokenizer of the run, or "
            "start a new one with --from_checkpoint",
        )  # fmt: skip
    folder = None if run.recipe.new_tokenizer else run.weights_folder
    if folder and run.has_own_tokenizer:
        check_folder_tokens(
            tokenizer, folder, "Leave out --tokenizer, and the checkpoint's own is used; where the "
            "tokens are to be learnt anew, add --set new_tokenizer=true",
        )  # fmt: skip
    if folder and is_adapter_folder(folder):
        check_folder_tokens(
            tokenizer, find_base(folder).folder, "An adapter leaves its model's embedding as it "
            "is: put the model's own tokenizer beside it",
        )  # fmt: skip


def check_new_tokenizer(run: ResolvedRun, helper: Path | None) -> None:
    """Raises ConfigError where new_tokenizer is given but the new tokens could not be learned.
    `helper` is the folder of the teacher or reference."""
    if not run.recipe.new_tokenizer:
        return
    if not (run.weights_folder and run.has_own_tokenizer):
        raise ConfigError(
            "new_tokenizer=true is for a --tokenizer beside --from_checkpoint: give both, or leave "
            "it out"
        )
    if run.recipe.count_weights(run.config)[1]:
        raise ConfigError(
            "new_tokenizer=true, but adapters leave the embedding as it is, which knows other "
            "tokens: train the whole model (--stage sft) first"
        )
    if helper == run.weights_folder:
        raise ConfigError(
            f"new_tokenizer=true, but the reference of --stage {run.stage} is the checkpoint as it "
            "is, which knows other tokens: train the model on them (--stage sft) first"
        )


def check_arguments(run: ResolvedRun) -> None:
    """Raises ConfigError where validation data is given without training data."""
    if run.arguments.get("val_data") and not run.arguments.get("data"):
        name = SAMPLE_PREFIX + STAGES[run.stage].sample_data.name
        raise ConfigError(
            "--val_data without --data would validate on yours and train on the project's sample "
            f"data: give --data too ({name} is the sample data's name)"
        )


def check_graphs(run: ResolvedRun) -> None:
    """Raises ConfigError where CUDA graphs are asked for and a micro-batch cannot run as one."""
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
    """Raises ConfigError where the DeepSpeed JSON's scheduler does not fit the stage: it has one
    learning rate and counts every update."""
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


def check_data(run: ResolvedRun, loader: PackedLoader, eval_data: EvalLoader | None) -> None:
    """Raises ConfigError where the training data has nothing to learn from, or the validation data
    nothing to measure. Reads each until it finds something."""
    check_num_steps(run, run.total_steps(loader))
    for what, data in (("training", loader), ("validation", eval_data)):
        if data is not None and not any(batch.count for batch in data.all_batches()):
            raise ConfigError(
                f"the {what} data has no target left: each of its {data.num_units:,} rows is cut "
                f"to {run.recipe.row_len} tokens before there is any. Raise --seq_len, or shorten "
                "the prompts"
            )
    STAGES[run.stage](run.recipe).check_data(loader.all_batches())


def check_num_steps(run: ResolvedRun, num_steps: int) -> None:
    """Raises ConfigError where the run has no step, or ends before the learning rate's warm-up
    does."""
    if num_steps < 1:
        raise ConfigError(
            f"epochs is {run.recipe.epochs:g}, too few for a single step: give more, or --max_steps"
        )
    if scheduler := run.ds_config.get("scheduler"):
        check_length(scheduler, run.ds_config["optimizer"]["params"]["lr"], num_steps)
    elif run.recipe.warmup_steps >= num_steps:
        raise ConfigError(
            f"warmup_steps is {run.recipe.warmup_steps:,}, and the run has {num_steps:,} steps: "
            "its learning rate would only rise. Give fewer (--set warmup_steps=N), or more "
            "--max_steps or --epochs"
        )
