"""Refuses a run that could learn nothing from its data, once the data is tokenised."""

from __future__ import annotations

from minimind.config.deepspeed_schedulers import check_length
from minimind.data.loader import EvalLoader, PackedLoader
from minimind.errors import ConfigError
from minimind.run.resolve import ResolvedRun
from minimind.stages import STAGES


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
