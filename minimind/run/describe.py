"""Describes a run in a banner."""

from __future__ import annotations

import dataclasses
import math

from minimind.config.deepspeed_json import precision
from minimind.config.deepspeed_schedulers import describe_scheduler
from minimind.config.recipe import replace_fields
from minimind.data.loader import EvalLoader, PackedLoader
from minimind.data.same_tokens import describe_other_end, has_tokenizer
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.run.build import build_schedule
from minimind.run.resolve import ResolvedRun
from minimind.stages import STAGES


def describe_run(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    loader: PackedLoader,
    eval_data: EvalLoader | None = None,
    start: Checkpoint | None = None,
) -> str:
    """Writes the text that a dry run and the start of a run print. `start` is the checkpoint that
    the run continues."""
    ds, total = run.ds_config, run.total_steps(loader)
    accumulation = ds["gradient_accumulation_steps"]
    kind = precision(ds)
    why = f" ({run.device.why_not_bf16})" if kind == "fp32" and run.device.why_not_bf16 else ""
    active = f" ({run.config.num_active_parameters:,} active)" if run.config.num_experts else ""
    is_whole = run.num_trained == run.config.num_parameters
    trained = "" if is_whole else f" + {run.num_trained:,} trained beside them"
    lines = [
        f"stage      {run.stage} of {run.model_name or 'a model of its own size'}: "
        f"{run.config.num_parameters:,} parameters{active}{trained}, vocabulary "
        f"{run.config.vocab_size:,}",
        f"device     {run.device.name} x {run.world_size}, {kind}{why}, "
        f"ZeRO stage {run.zero_stage}",
        f"step       {run.train_batch_size} {_describe_rows(run)} = micro-batch "
        f"{run.micro_batch_size} x accumulation {accumulation} x {run.world_size} rank(s)",
        f"run        {total:,} steps, {total * run.train_batch_size / loader.num_rows:.2f} epochs "
        f"of {_describe_epoch(run, loader)}",
        f"rate       {_describe_rate(run)}, clipping {run.recipe.gradient_clipping}",
        f"validated  {_describe_validation(run, loader, eval_data)}",
    ]
    if start and (jump := _describe_jump(run, loader, start)):
        lines.append(f"rate jumps {jump}")
    lines += [f"adapters   {remark}" for remark in run.recipe.remarks(run.config)]
    if said := _describe_tokenizer(run, tokenizer):
        lines.append(f"tokenizer  {said}")
    if run.recipe.cuda_graph:
        lines.append("graphs     a micro-batch's forward and its backward each one CUDA graph")
    if loader.rows.plan.num_truncated:
        lines.append(f"cut        {_describe_cut(run, loader)}")
    return "\n".join(lines)


def _describe_rows(run: ResolvedRun) -> str:
    if STAGES[run.stage].data_format.packed:
        return f"rows x {run.seq_len} tokens"
    return f"prompts of up to {run.recipe.row_len} tokens"


def _describe_epoch(run: ResolvedRun, loader: PackedLoader) -> str:
    if not STAGES[run.stage].data_format.packed:
        return f"{loader.num_units:,} prompts"
    plan = loader.rows.plan
    return (
        f"{plan.num_tokens:,} tokens in {loader.num_rows:,} rows, {plan.padding_share:.2%} padding"
    )


def _describe_cut(run: ResolvedRun, loader: PackedLoader) -> str:
    is_paired = STAGES[run.stage].data_format.documents_per_unit == 2
    what = "pairs have no difference" if is_paired else "conversations have no target"
    cut, lost = loader.rows.plan.num_truncated, loader.rows.count_lost()
    advice = f": --seq_len above {run.seq_len} keeps more" if lost else ""
    return (
        f"{cut:,} documents to fit a row; {lost:,} of {loader.num_units:,} {what} "
        f"left, and teach nothing{advice}"
    )


def _describe_tokenizer(run: ResolvedRun, tokenizer: Tokenizer) -> str:
    """Describes how a --tokenizer may differ from the checkpoint's own; "" where none is given."""
    folder = run.weights_folder
    if folder is None or not run.has_own_tokenizer:
        return ""
    if run.recipe.new_tokenizer:
        return "another than the checkpoint's, whose tokens are learnt anew"
    if not has_tokenizer(folder):
        return f"taken on trust, as {folder} brings none: its ids must be those of the weights"
    return describe_other_end(tokenizer, folder)


def _describe_validation(
    run: ResolvedRun, loader: PackedLoader, eval_data: EvalLoader | None
) -> str:
    if eval_data is None:
        return "never: there is no --val_data"
    if not run.recipe.eval_every:
        return "never: eval_every is 0"
    what = "rows" if STAGES[run.stage].data_format.packed else "prompts"
    text = f"every {run.recipe.eval_every} steps"
    total = run.total_steps(loader)
    once = ""
    if total < run.recipe.eval_every:
        once = f"; the run has {total:,} steps, so at its end alone"
    num_there = len(eval_data.rows)
    if eval_data.num_rows == num_there:
        return f"{text} on all {eval_data.num_rows:,} {what}{once}"
    return (
        f"{text} on {eval_data.num_rows:,} of {num_there:,} {what}, always the same "
        f"ones, by which the best checkpoint is chosen; --set eval_rows=0 takes all{once}"
    )


def _describe_jump(run: ResolvedRun, loader: PackedLoader, start: Checkpoint) -> str | None:
    """Describes how the learning rate goes on where the checkpoint's run had planned another
    course; None where it had the same."""
    if run.ds_config.get("scheduler"):
        return None
    recipe = type(run.recipe)()
    names = {field.name for field in dataclasses.fields(recipe)}
    saved = {name: value for name, value in start.meta["recipe"].items() if name in names}
    earlier = dataclasses.replace(run, recipe=replace_fields(recipe, saved, str(start.folder)))
    step, before, now = start.meta["step"], earlier.total_steps(loader), run.total_steps(loader)
    old, new = build_schedule(earlier, before), build_schedule(run, now)
    if step >= now or math.isclose(old(step), new(step), rel_tol=0.01):
        return None
    keep = f"--max_steps {before} keeps to the old course; " if step < before else ""
    return (
        f"from {old(step - 1):.2e} at step {step:,} to {new(step):.2e}: the checkpoint's run was "
        f"to have {before:,} steps, and this one follows the course of a run of {now:,} from its "
        f"beginning. {keep}--from_checkpoint {start.folder} starts a new one, with warm-up and a "
        "--learning_rate of its own"
    )


def _describe_rate(run: ResolvedRun) -> str:
    if scheduler := run.ds_config.get("scheduler"):
        return describe_scheduler(scheduler, run.ds_config["optimizer"]["params"]["lr"])
    optimizer = run.ds_config["optimizer"]["type"]
    return f"{run.learning_rate:.2e} peak of {optimizer}, {run.recipe.warmup_steps} warm-up steps"
