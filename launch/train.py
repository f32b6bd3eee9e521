"""Trains a model: `deepspeed launch/train.py --ds_config zero2.json`, `torchrun` or plain `python`.

Exit status: 0 done, 1 the training broke, 2 bad usage, configuration or data, 130 interrupted with
a checkpoint saved.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minimind.config.flags import TrainArguments, parse_train_arguments
from minimind.data.loader import EvalLoader, PackedLoader, parse_data_args
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import (
    Checkpoint,
    CheckpointStore,
    check_same_helpers,
    find_latest,
    load_engine_state,
    needs_universal,
)
from minimind.engine.deepspeed_engine import (
    DeepSpeedEngine,
    broadcast,
    start_ranks,
    stop_ranks,
)
from minimind.engine.loop import Events, Loop, RunState
from minimind.engine.metrics import MetricsLog, Monitor, SwanLabMonitor
from minimind.engine.progress import Progress
from minimind.engine.routers import ROUTER_COLUMNS
from minimind.engine.schedule import CosineSchedule
from minimind.engine.stage import BuildContext, Stage, StageModels
from minimind.errors import MiniMindError, TrainingError
from minimind.inference.samples import choose_prompts, sample_texts
from minimind.runtime.devices import check_kernels, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks, read_ranks
from minimind.runtime.seeds import make_deterministic
from minimind.stages import STAGES
from minimind.stages.inputs import build_loaders, load_start
from minimind.stages.resolve import (
    ResolvedRun,
    check_same_run,
    describe_run,
    find_tokenizer,
    resolve_run,
)
from minimind.stages.run_folder import make_folder, merge_earlier, write_run

logger = logging.getLogger("minimind")


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(read_ranks().rank)
    try:
        arguments = parse_train_arguments(
            argv, {name: stage.recipe_type for name, stage in STAGES.items()}
        )
        ranks = read_ranks(arguments.local_rank)
        return train(arguments, ranks)
    except MiniMindError as error:
        # Every rank meets the same bad input; one of them says so.
        if read_ranks().is_main:
            logger.error("error: %s", error)
        return 2
    except TrainingError as error:
        if read_ranks().is_main:
            logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        return 130


def train(arguments: TrainArguments, ranks: Ranks) -> int:
    device = find_device(ranks.local_rank)
    check_kernels(device)
    limit_threads(ranks.local_world_size)
    if arguments.resume:
        arguments = merge_earlier(arguments)
    tokenizer = find_tokenizer(arguments)
    run = resolve_run(arguments, tokenizer, ranks, device)
    if arguments.dry_run:
        loader, _ = build_loaders(run, tokenizer, ranks)
        if ranks.is_main:
            print(describe_run(run, loader))
        return 0
    if run.recipe.deterministic:
        make_deterministic()
    start_ranks(ranks, device)
    # Rank 0 fills the token caches, which the others then map.
    loaders = _main_first(ranks, lambda: build_loaders(run, tokenizer, ranks))
    loader, eval_data = loaders or build_loaders(run, tokenizer, ranks)
    folder = broadcast(_main_first(ranks, lambda: make_folder(run)))
    finished = run_loop(run, tokenizer, ranks, loader, eval_data, folder)
    broadcast(None)  # no rank leaves before the first has written all
    return 0 if finished else 130


ResultT = TypeVar("ResultT")


def _main_first(ranks: Ranks, work: Callable[[], ResultT]) -> ResultT | None:
    """What `work` gives on rank 0, for which the others wait; None on those. Where it is an error
    of the user's, all ranks raise it: one that went on alone would fail in its next collective."""
    result, error = None, None
    if ranks.is_main:
        try:
            result = work()
        except MiniMindError as problem:
            error = problem
    if error := broadcast(error):
        raise error
    return result


def run_loop(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    ranks: Ranks,
    loader: PackedLoader,
    eval_data: EvalLoader | None,
    folder: Path,
) -> bool:
    """Trains; True when done, False when interrupted."""
    checkpoints = folder / "checkpoints"
    started = _start(run, tokenizer, ranks, loader, eval_data, checkpoints)
    engine, state, total_steps = started.engine, started.state, run.total_steps(loader)
    logger.info("%s", describe_run(run, loader))
    if started.at:
        logger.info("resumed    from step %d of %s", state.step, started.at.folder)
    if started.at and state.step >= total_steps:
        logger.info("all %d steps are done already: %s", total_steps, started.at.folder)
        return True
    peak_flops = run.device.peak_flops
    progress = Progress(
        is_main=ranks.is_main,
        first_step=state.step,
        total_steps=total_steps,
        log_every=run.recipe.log_every,
        flops_per_token=run.flops_per_token,
        peak_flops=peak_flops * ranks.world_size if peak_flops else None,
    )
    store = CheckpointStore(checkpoints, engine, run.recipe.keep_checkpoints, started.models.save)
    log = _main_first(ranks, lambda: _start_log(run, folder, started))
    schedule = CosineSchedule(
        run.learning_rate, total_steps, run.recipe.warmup_steps, run.recipe.min_lr_ratio
    )
    loop = Loop(
        stage=started.stage,
        engine=engine,
        loader=loader,
        recipe=run.recipe,
        learning_rate=None if engine.has_scheduler else schedule,
        total_steps=total_steps,
        events=_events(run, tokenizer, started, store, log, progress, loader.fingerprint),
        progress=progress,
        eval_data=eval_data,
        state=state,
    )
    try:
        finished = loop.run()
    finally:
        progress.close()
        if log:
            log.close()
    if finished and started.models.finish and ranks.is_main:
        started.models.finish(folder)
    logger.info("%s: %s", "done" if finished else "interrupted", checkpoints / "latest")
    return finished


@dataclass(frozen=True, slots=True)
class _Started:
    stage: Stage[Any]
    models: StageModels
    engine: DeepSpeedEngine
    state: RunState
    at: Checkpoint | None
    """What a resumed run goes on from."""


def _start(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    ranks: Ranks,
    loader: PackedLoader,
    eval_data: EvalLoader | None,
    checkpoints: Path,
) -> _Started:
    """Fresh, from the weights given or, with --resume, as the newest checkpoint has it."""
    start = find_latest(checkpoints) if run.arguments.resume else None
    if start:
        check_same_run(start, run, loader.fingerprint)
    stage = STAGES[run.stage](run.recipe)
    models = stage.build_models(
        BuildContext(
            config=run.config,
            weights=None if start else load_start(run),
            weights_folder=run.weights_folder,
            checkpoint=start.folder if start else None,
            device=run.device.torch_device,
            dtype=run.dtype,
            tokenizer=tokenizer,
            loader=loader,
            eval_data=eval_data,
        )
    )
    models.policy.to(run.device.torch_device)
    universal = False
    if start:
        check_same_helpers(start, models.helpers_fingerprint)
        universal = needs_universal(start, ranks.world_size, run.zero_stage, run.ds_config)
    engine = DeepSpeedEngine(
        models.policy, run.ds_config, run.recipe, run.device, ranks, load_universal=universal
    )
    state = RunState()
    if start:
        load_engine_state(engine, start, universal=universal)
        saved = start.meta["state"]
        state = RunState(**{**saved, "best_val_loss": float(saved["best_val_loss"])})
    return _Started(stage, models, engine, state, start)


def _events(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    started: _Started,
    store: CheckpointStore,
    log: MetricsLog | None,
    progress: Progress,
    fingerprint: str,
) -> Events:
    """`fingerprint`: the loader's."""
    data = run.arguments.get("data")
    paths = [path for path, _ in parse_data_args(data)] if data else []
    is_chat = started.stage.data_format != "text"
    prompts = choose_prompts(run.recipe.sample_prompts, paths, is_chat=is_chat)
    meta = {
        **run.to_dict(),
        "fingerprint": fingerprint,
        "helpers_fingerprint": started.models.helpers_fingerprint,
        "zero_stage": run.zero_stage,
    }

    def save(state: RunState, is_best: bool) -> None:
        now = {
            "step": state.step,
            "tokens": state.tokens,
            # JSON knows no infinity: before the first validation it is the text "inf".
            "best_val_loss": str(state.best_val_loss),
        }
        path = store.save(
            state.step,
            meta | {"step": state.step, "state": now},
            run.config,
            tokenizer.save,
            is_best=is_best,
        )
        if log:
            log.plot(or_later=True)
        progress.say("step %d: saved %s%s", state.step, path, ", the best so far" * is_best)

    def sample(module: Any, step: int) -> None:
        if started.engine.ranks.is_main:
            for text in sample_texts(module, tokenizer, prompts, is_chat=is_chat):
                progress.say("step %d: %s", step, text)

    return Events(record=log.write if log else lambda *_: None, save=save, sample=sample)


def _start_log(run: ResolvedRun, folder: Path, started: _Started) -> MetricsLog:
    write_run(folder, run)
    monitor = started.engine.monitor
    monitors: list[Monitor] = [monitor] if monitor.enabled else []
    if run.recipe.swanlab:
        monitors.append(SwanLabMonitor("minimind", folder.name, run.to_dict()))
    names = (*started.stage.metric_names, *(ROUTER_COLUMNS if run.config.num_experts else ()))
    return MetricsLog(folder, names, monitors, started.state.step)


if __name__ == "__main__":
    status = main()
    stop_ranks()
    if not read_ranks().is_main:
        # Only the first rank has anything left to close, and the communication's threads now and
        # then abort a process that ends the long way.
        os._exit(status)
    sys.exit(status)
