"""What a run says of itself: the banner."""

from __future__ import annotations

from minimind.config.deepspeed_json import precision
from minimind.config.deepspeed_schedulers import describe_scheduler
from minimind.data.loader import PackedLoader
from minimind.run.resolve import ResolvedRun
from minimind.stages import STAGES


def describe_run(run: ResolvedRun, loader: PackedLoader) -> str:
    """What --dry_run and the start of a run print."""
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
    ]
    if run.recipe.new_tokenizer:
        lines.append("tokenizer  another than the checkpoint's, whose tokens are learnt anew")
    if run.recipe.cuda_graph:
        lines.append("graphs     a micro-batch's forward and its backward each one CUDA graph")
    if loader.num_truncated:
        lines.append(
            f"cut        {loader.num_truncated:,} documents to fit a row, "
            f"{loader.count_cut_before_targets():,} of them before any target, which teach nothing"
        )
    return "\n".join(lines)


def _describe_rows(run: ResolvedRun) -> str:
    if STAGES[run.stage].data_format.packed:
        return f"rows x {run.seq_len} tokens"
    return f"prompts of up to {run.recipe.row_len} tokens"


def _describe_epoch(run: ResolvedRun, loader: PackedLoader) -> str:
    if not STAGES[run.stage].data_format.packed:
        return f"{loader.num_units:,} prompts"
    return (
        f"{loader.tokens_per_epoch:,} tokens in {loader.num_rows:,} rows, "
        f"{loader.padding_share:.2%} padding"
    )


def _describe_rate(run: ResolvedRun) -> str:
    if scheduler := run.ds_config.get("scheduler"):
        return describe_scheduler(scheduler, run.ds_config["optimizer"]["params"]["lr"])
    return f"{run.learning_rate:.2e} peak, {run.recipe.warmup_steps} warm-up steps"
