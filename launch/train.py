"""Trains a model: `deepspeed launch/train.py --ds_config zero2.json`, `torchrun` or plain `python`.

Exit status: 0 done, 1 the training broke, 2 bad usage, configuration or data, 130 interrupted with
a checkpoint saved.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimind.config.flags import TrainArguments, parse_train_arguments
from minimind.data.loader import EvalLoader, PackedLoader, parse_data_args
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import (
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
from minimind.engine.stage import BuildContext
from minimind.errors import CheckpointError, ConfigError, MiniMindError, TrainingError
from minimind.inference.samples import choose_prompts, sample_texts
from minimind.runtime.devices import check_kernels, find_device, limit_threads
from minimind.runtime.logging import set_up_logging
from minimind.runtime.ranks import Ranks, read_ranks
from minimind.stages import STAGES
from minimind.stages.inputs import build_loaders, load_start
from minimind.stages.resolve import (
    ResolvedRun,
    check_same_run,
    describe_run,
    find_tokenizer,
    resolve_run,
)

logger = logging.getLogger("minimind")

RUNS = Path("runs")


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
    resumed_from = Path(arguments.run["output_dir"]) if "output_dir" in arguments.run else None
    if arguments.resume:
        arguments = _merge_earlier(arguments, resumed_from)
    tokenizer = find_tokenizer(arguments)
    run = resolve_run(arguments, tokenizer, ranks, device)
    if arguments.dry_run:
        loader, _ = build_loaders(run, tokenizer, ranks)
        if ranks.is_main:
            print(describe_run(run, loader))
        return 0
    start_ranks(ranks, device)
    if not ranks.is_main:  # rank 0 fills the token caches, the others then map them
        broadcast(None)
    loader, eval_data = build_loaders(run, tokenizer, ranks)
    if ranks.is_main:
        broadcast(None)
    folder = Path(broadcast(str(_make_folder(run)) if ranks.is_main else None))
    finished = run_loop(run, tokenizer, ranks, loader, eval_data, folder)
    broadcast(None)  # no rank leaves before the first has written all
    return 0 if finished else 130


def run_loop(
    run: ResolvedRun,
    tokenizer: Tokenizer,
    ranks: Ranks,
    loader: PackedLoader,
    eval_data: EvalLoader | None,
    folder: Path,
) -> bool:
    """Trains; True when done, False when interrupted."""
    recipe, device = run.recipe, run.device
    checkpoints = folder / "checkpoints"
    start = find_latest(checkpoints) if run.arguments.resume else None
    if start:
        check_same_run(start, run, loader.fingerprint)
    stage = STAGES[run.stage](recipe)
    models = stage.build_models(
        BuildContext(
            config=run.config,
            weights=None if start else load_start(run),
            weights_folder=run.weights_folder,
            checkpoint=start.folder if start else None,
            device=device.torch_device,
            dtype=run.dtype,
            tokenizer=tokenizer,
            loader=loader,
            eval_data=eval_data,
        )
    )
    if start:
        check_same_helpers(start, models.helpers_fingerprint)
    models.policy.to(device.torch_device)
    zero_stage = int((run.ds_config.get("zero_optimization") or {}).get("stage", 0))
    universal = bool(start) and needs_universal(start, ranks.world_size, zero_stage, run.ds_config)
    engine = DeepSpeedEngine(
        models.policy, run.ds_config, recipe, device, ranks, load_universal=universal
    )
    state = RunState()
    if start:
        load_engine_state(engine, start, universal=universal)
        saved = start.meta["state"]
        state = RunState(**{**saved, "best_val_loss": float(saved["best_val_loss"])})
    data = run.arguments.get("data")
    paths = [path for path, _ in parse_data_args(data)] if data else []
    is_chat = stage.data_format != "text"
    prompts = choose_prompts(recipe.sample_prompts, paths, is_chat=is_chat)
    total_steps = run.total_steps(loader)
    logger.info("%s", describe_run(run, loader))
    if start:
        logger.info("resumed    from step %d of %s", state.step, start.folder)
    if state.step >= total_steps:
        logger.info("all %d steps are done already: %s", total_steps, start and start.folder)
        return True
    store = CheckpointStore(checkpoints, engine, recipe.keep_checkpoints, models.save)
    log = None
    if ranks.is_main:
        names = (*stage.metric_names, *(ROUTER_COLUMNS if run.config.num_experts else ()))
        log = _start_log(run, folder, engine, state.step, names)
    meta = {
        **run.to_dict(),
        "fingerprint": loader.fingerprint,
        "helpers_fingerprint": models.helpers_fingerprint,
        "zero_stage": zero_stage,
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
            log.plot()
        progress.say("step %d: saved %s%s", state.step, path, ", the best so far" * is_best)

    def sample(module: Any, step: int) -> None:
        if ranks.is_main:
            for text in sample_texts(module, tokenizer, prompts, is_chat=is_chat):
                progress.say("step %d: %s", step, text)

    progress = Progress(
        is_main=ranks.is_main,
        first_step=state.step,
        total_steps=total_steps,
        log_every=recipe.log_every,
        flops_per_token=run.flops_per_token,
        peak_flops=device.peak_flops * ranks.world_size if device.peak_flops else None,
    )
    schedule = CosineSchedule(
        run.learning_rate, total_steps, recipe.warmup_steps, recipe.min_lr_ratio
    )
    loop = Loop(
        stage=stage,
        engine=engine,
        loader=loader,
        recipe=recipe,
        learning_rate=None if engine.has_scheduler else schedule,
        total_steps=total_steps,
        events=Events(record=log.write if log else lambda *_: None, save=save, sample=sample),
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
    if finished and models.finish and ranks.is_main:
        models.finish(folder)
    logger.info("%s: %s", "done" if finished else "interrupted", checkpoints / "latest")
    return finished


def _start_log(
    run: ResolvedRun, folder: Path, engine: DeepSpeedEngine, step: int, names: Sequence[str]
) -> MetricsLog:
    text = json.dumps(run.to_dict(), indent=2, ensure_ascii=False) + "\n"
    fresh = folder / "run.json.new"
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(folder / "run.json")  # a kill leaves the earlier one, which --resume reads
    monitors: list[Monitor] = [engine.monitor] if engine.monitor.enabled else []
    if run.recipe.swanlab:
        monitors.append(SwanLabMonitor("minimind", folder.name, run.to_dict()))
    return MetricsLog(folder, names, monitors, step)


def _merge_earlier(arguments: TrainArguments, folder: Path | None) -> TrainArguments:
    if folder is None:
        raise ConfigError("--resume needs --output_dir, the folder of the run to go on with")
    path = folder / "run.json"
    if not path.exists():
        return arguments
    try:
        return arguments.merge(json.loads(path.read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _make_folder(run: ResolvedRun) -> Path:
    folder = _choose_folder(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be made: {error.strerror}; name a folder"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir {folder}: cannot be written to")
    return folder


def _choose_folder(run: ResolvedRun) -> Path:
    if given := run.arguments.get("output_dir"):
        folder = Path(given)
        if not run.arguments.resume and any((folder / "checkpoints").glob("step-*")):
            raise ConfigError(
                f"{folder} already holds a run's checkpoints: --resume goes on with it, another "
                "--output_dir starts a new one"
            )
        return folder
    name = f"{run.stage}-{Path(run.model_name).stem or 'model'}"
    number = 1
    while (RUNS / f"{name}-{number}").exists():
        number += 1
    return RUNS / f"{name}-{number}"


if __name__ == "__main__":
    status = main()
    stop_ranks()
    if not read_ranks().is_main:
        # Only the first rank has anything left to close, and the communication's threads now and
        # then abort a process that ends the long way.
        os._exit(status)
    sys.exit(status)
