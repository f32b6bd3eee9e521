"""Builds the parts of a resolved run: the stage's models, the engine, the loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.config.recipe import replace_fields
from minimind.data.loader import EvalLoader
from minimind.data.mixture import parse_data_args
from minimind.data.tokenizer import Tokenizer
from minimind.engine.callbacks import Callbacks, RunState
from minimind.engine.checkpoint import Checkpoint, check_same_helpers, needs_conversion, step_of
from minimind.engine.checkpoint_store import CheckpointStore
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.loop import Loop
from minimind.engine.metrics import METRICS_FILE, MetricsLog, read_figures, read_metrics
from minimind.engine.progress import Progress
from minimind.engine.routers import ROUTER_COLUMNS
from minimind.engine.sample_log import SampleLog, spell_sample
from minimind.engine.schedule import SCHEDULES
from minimind.engine.stage import Loader, Stage, StageModels
from minimind.engine.universal import open_states
from minimind.errors import CheckpointError, ConfigError
from minimind.inference.prompts import answer_lines, choose_prompts
from minimind.lora.folder import META_FILE
from minimind.monitors.monitor import MonitoredRun, Outcome
from minimind.monitors.start import start_monitors
from minimind.run.folder import write_run
from minimind.run.inputs import build_context, hash_helpers, load_start
from minimind.run.resolve import ResolvedRun
from minimind.runtime.ranks import Ranks
from minimind.runtime.together import main_first
from minimind.samples.sources import find_data_file
from minimind.stages import STAGES

SKIPPED_FILE = "skipped_steps.jsonl"
_SAMPLES_SAID = 4
"""The most of a stage's own samples that the console shows at once."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Holds a stage and the models that it built, with the policy on its device."""

    stage: Stage[Any, Any]
    models: StageModels
    helpers_fingerprint: str
    """Identifies the weights of the helper (a teacher or reference); "" without one."""


def build_trained(
    run: ResolvedRun,
    tokenizer: Tokenizer | None = None,
    loader: Loader[Any] | None = None,
    eval_data: EvalLoader | None = None,
    start: Checkpoint | None = None,
) -> Trained:
    """Builds the stage and its models. The weights are new or those of --from_checkpoint; with
    `start` they are the checkpoint's. A stage that compares with a reference needs the tokenizer
    and the data."""
    stage = STAGES[run.stage](run.recipe)
    context = build_context(
        run,
        tokenizer,
        start,
        weights=None if start else load_start(run),
        loader=loader,
        eval_data=eval_data,
    )
    models = stage.build_models(context)
    models.policy.to(run.device.torch_device)
    return Trained(stage, models, hash_helpers(stage, context))


def build_engine(
    run: ResolvedRun, ranks: Ranks, trained: Trained, start: Checkpoint | None = None
) -> DeepSpeedEngine:
    """Builds the engine around the policy. With `start` it has the checkpoint's state."""
    policy = trained.models.policy

    def build() -> DeepSpeedEngine:
        return DeepSpeedEngine(policy, run.ds_config, run.recipe, run.device, ranks)

    if start is None:
        return build()
    check_same_helpers(start, trained.helpers_fingerprint)
    if needs_conversion(start, ranks.world_size, run.zero_stage, run.ds_config):
        with open_states(start, policy, run.recipe, ranks) as states:
            states.fill(policy)
            engine = build()
            engine.set_states(states, start.step)
    else:
        engine = build()
        engine.load(start.folder)
    return engine


def build_loop(
    run: ResolvedRun,
    stage: Stage[Any, Any],
    engine: DeepSpeedEngine,
    loader: Loader[Any],
    eval_data: EvalLoader | None = None,
    *,
    total_steps: int,
    start: Checkpoint | None = None,
) -> Loop[Any, Any]:
    """Builds the loop for a stage and an engine; with `start` it continues at the checkpoint's
    step. The engine is a parameter, so that programs which count the loop's steps can pass one
    without DeepSpeed."""
    return Loop(
        stage=stage,
        engine=engine,
        loader=loader,
        recipe=run.recipe,
        learning_rate=None if engine.has_scheduler else build_schedule(run, total_steps),
        total_steps=total_steps,
        eval_data=eval_data,
        state=_load_state(start) if start else RunState(),
    )


def _load_state(start: Checkpoint) -> RunState:
    """Loads the state of the run that a checkpoint describes. Raises CheckpointError."""
    path, saved = start.folder / META_FILE, start.meta["state"]
    try:
        best = {"best_val_loss": float(saved["best_val_loss"])}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: state holds no best_val_loss that is a number") from None
    try:
        return replace_fields(RunState(), saved | best, f"{path}: state", "field")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def build_schedule(run: ResolvedRun, total_steps: int) -> Callable[[int], float]:
    """Gives the recipe's learning rate as a function of the step, for a run of `total_steps`
    steps."""
    return SCHEDULES[run.recipe.schedule](
        run.learning_rate, total_steps, run.recipe.warmup_steps, run.recipe.min_lr_ratio
    )


class Recorder:
    """Records what happens in a run: on the console, in metrics, checkpoints and samples."""

    def __init__(
        self, run: ResolvedRun, tokenizer: Tokenizer, trained: Trained, loop: Loop[Any, Any],
        folder: Path,
    ) -> None:  # fmt: skip
        self._run, self._tokenizer, self._engine = run, tokenizer, loop.engine
        self._folder = folder
        ranks, recipe = loop.engine.ranks, run.recipe
        peak_flops = run.device.peak_flops
        self._progress = Progress(
            is_main=ranks.is_main,
            first_step=loop.state.step,
            total_steps=loop.total_steps,
            log_every=recipe.log_every,
            flops_per_token=run.flops_per_token,
            peak_flops=peak_flops * ranks.world_size if peak_flops else None,
        )
        self._store = CheckpointStore(
            folder / "checkpoints",
            loop.engine,
            recipe.keep_checkpoints,
            trained.models.save,
            keep_every=recipe.keep_every,
            saved=self._say_saved,
        )
        self._log = main_first(
            ranks, lambda: _start_log(run, folder, trained.stage, loop.state.step)
        )
        data = run.arguments.get("data")
        self._stage = trained.stage
        self._samples = main_first(ranks, lambda: SampleLog(folder, loop.state.step))
        sources = parse_data_args(data) if data else []
        paths = [find_data_file(path, "train") for path, _ in sources]
        self._prompts = choose_prompts(
            recipe.sample_prompts,
            paths,
            is_chat=run.is_chat,
            kind=trained.stage.data_format.name,
            format_name=run.arguments.get("format"),
        )
        self._meta = {
            **run.to_dict(),
            "fingerprint": loop.loader.fingerprint,
            "helpers_fingerprint": trained.helpers_fingerprint,
            "zero_stage": run.zero_stage,
            "is_chat": run.is_chat,
        }

    @property
    def callbacks(self) -> Callbacks:
        """Gives the callbacks for the loop."""
        return Callbacks(
            record=self._log.write if self._log else lambda *_: None,
            save=self._save,
            confirm=self._store.confirm,
            sample=self._sample,
            skip=self._skip,
            update=self._progress.update,
            say=self._progress.say,
        )

    def close(self, outcome: Outcome, *, is_lost: bool = False) -> None:
        """Closes metrics, samples and checkpoints. Where a rank is lost, it does not wait for a
        checkpoint that is being written: the checkpoint's error would hide the one that names the
        rank."""
        if not is_lost:
            self._store.close()
        self._progress.close()
        if self._log:
            self._log.close(outcome)

    def _save(self, state: RunState, is_best: bool) -> None:
        now = {
            "step": state.step,
            "tokens": state.tokens,
            # JSON has no infinity: before the first validation the best loss is the text "inf".
            "best_val_loss": str(state.best_val_loss),
            "skipped_steps": state.skipped_steps,
            "passed_over": list(state.passed_over),
        }
        self._store.save(
            state.step,
            self._meta | {"step": state.step, "state": now},
            self._run.config,
            self._tokenizer.save,
            is_best=is_best,
        )
        if self._log:
            self._log.plot(or_later=True)

    def _say_saved(self, path: Path, is_best: bool) -> None:
        best = ", the best so far" * is_best
        self._progress.say("step %d: saved %s%s", step_of(path), path, best)

    def _skip(self, step: int, loss: float, grad_norm: float, rows: list[str]) -> None:
        if self._engine.ranks.is_main:
            # As text, since JSON has neither NaN nor infinity.
            entry = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "rows": rows}
            with open(self._folder / SKIPPED_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _sample(self, module: Any, step: int) -> None:
        if self._samples is None or self._log is None:
            return
        if samples := self._stage.samples():
            self._samples.write(step, samples)
            texts = [spell_sample(sample) for sample in samples[:_SAMPLES_SAID]]
        else:
            texts = answer_lines(module, self._tokenizer, self._prompts, is_chat=self._run.is_chat)
        self._log.monitors.write_texts(step, texts)
        for text in texts:
            self._progress.say("step %d: %s", step, text)


def _start_log(run: ResolvedRun, folder: Path, stage: Stage[Any, Any], step: int) -> MetricsLog:
    write_run(folder, run)
    rows = [(int(row["step"]), read_figures(row)) for row in read_metrics(folder / METRICS_FILE)]
    monitored = MonitoredRun(
        folder=folder,
        config=run.to_dict(),
        resumed=run.arguments.resume or step > 0,  # a run may go back from a spike
        step=step,
        reached=max((number for number, _ in rows), default=0),
        earlier=[row for row in rows if row[0] <= step],
    )
    routers = ROUTER_COLUMNS if run.config.num_experts else ()
    names = (*stage.metric_names, *stage.measured_names, *routers)
    return MetricsLog(folder, names, start_monitors(monitored, run.ds_config), step)
