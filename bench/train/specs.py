"""Defines what the rows of bench.train train: runs as `minimind train` resolves them.

Pretraining starts from fresh weights, on documents cut at one length, which a padded row can hold
too. Every other stage starts from those same weights as a folder on disk, and reads its own data as
a run does.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.train.documents import Documents, FirstSteps, draw_documents
from minimind.config.deepspeed_json import load_ds_config
from minimind.config.model import ModelConfig
from minimind.config.recipe import parse_assignments
from minimind.config.sizes import default_sizes
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.run.arguments import collect_arguments
from minimind.run.build import build_trained
from minimind.run.resolve import DTYPES, ResolvedRun, find_tokenizer
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES

DOCUMENT_TOKENS = 340
_MEASURED_STEPS = 6
"""Steps taken after the timed ones, at most: one for the peak of memory, one for the parts of a
step, and on a GPU two each for operators and for the profile."""
_EVERY_STAGE = ("plain_loop", "engine")
_ROWS = {
    "pretrain": ("original", *_EVERY_STAGE),
    "sft": (*_EVERY_STAGE, "pretrain"),
    "lora": (*_EVERY_STAGE, "sft"),
    "dpo": (*_EVERY_STAGE, "two_models", "frozen"),
    "distill": (*_EVERY_STAGE, "sft", "frozen"),
    "grpo": ("original", *_EVERY_STAGE),
}
"""The rows of stages that are judged by more than two. A row named after another stage is that
stage in the engine."""
EXPERT_ROWS = ("dense", "expert_loop")
_MORE_ROWS = {"pretrain": ("compiled", "transformers", *EXPERT_ROWS)}
"""The rows of a stage that are measured only where --rows names them."""
_DECIDED = {"micro_batch_size": "--micro_batch", "train_batch_size": "--accumulation",
            "max_steps": "--steps"}  # fmt: skip


def usual_rows(stage: str) -> tuple[str, ...]:
    """Lists the rows of a stage that are measured without --rows."""
    return _ROWS.get(stage, _EVERY_STAGE)


def all_rows(stage: str) -> tuple[str, ...]:
    return usual_rows(stage) + _MORE_ROWS.get(stage, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """Holds all that a worker process needs to build its row."""

    name: str
    ds_config_name: str | None
    """The JSON of a row in the engine; None for any other row."""
    run: ResolvedRun
    documents: Documents | None
    """None where the row reads the run's own data."""
    original_batch: int
    steps: int
    """The number of optimizer steps that will be asked for, with warm-up and measured ones."""

    @property
    def accumulation(self) -> int:
        return int(self.run.ds_config["gradient_accumulation_steps"])

    def open_run(self) -> tuple[Run, FirstSteps]:
        """Builds the run in the process that calls this. Gives the run and the data of its first
        steps."""
        run, resolved = Run(self.run, find_tokenizer(self.run.arguments), read_ranks()), self.run
        if self.documents is None:
            return run, FirstSteps(run.loader, self.steps, resolved.train_batch_size)
        return run, self.documents.pack(
            seq_len=resolved.seq_len,
            micro_batch=resolved.micro_batch_size,
            accumulation=self.accumulation,
            steps=self.steps,
        )


def build_specs(
    options: argparse.Namespace, model: str, rows: list[str], device: Device, folder: Path
) -> list[RowSpec]:
    """Gives a spec for each row; the row `engine` has one for each JSON, all others train with the
    first JSON. `folder` is empty and is filled with the weights that the runs start from. Raises a
    MiniMindError for a run that cannot work."""
    resolver = _Resolver(options, device)
    first, documents = options.ds_config[0], None
    of_row = {row: row if row in STAGES else options.stage for row in rows}
    stages = sorted({options.stage, *of_row.values()})
    if options.other_data and len({STAGES[stage].data_format for stage in stages}) == 1:
        raise ConfigError(f"--other_data {options.other_data}: no row reads another format")
    if options.stage == "pretrain":
        runs = {("pretrain", ds): resolver.fresh(model, ds) for ds in options.ds_config}
        documents = _draw(options, list(runs.values()))
    else:
        if options.document_tokens is not None:
            raise ConfigError("--document_tokens is for --stage pretrain: others cut no documents")
        _save_start(resolver.fresh(model, first), folder)
        runs = {
            (stage, ds): resolver.started(stage, model, ds, folder)
            for stage in stages
            for ds in (options.ds_config if stage == options.stage else [first])
        }
        for run in runs.values():
            _ = run.loader  # fills the token caches, which the rows' processes then map
    specs = []
    for row, stage in of_row.items():
        is_in_engine = row in ("engine", "two_models") or row in STAGES
        for ds in options.ds_config if row == "engine" else [first]:
            spec = RowSpec(
                name=row,
                ds_config_name=ds if is_in_engine else None,
                run=_without_experts(runs[stage, ds].resolved, row, model),
                documents=documents,
                original_batch=options.original_batch,
                steps=_num_steps(options),
            )
            specs.append(spec)
    return specs


def _num_steps(options: argparse.Namespace) -> int:
    return options.warmup + options.steps + _MEASURED_STEPS


class _Resolver:
    """Resolves the runs of one command line."""

    def __init__(self, options: argparse.Namespace, device: Device) -> None:
        self._options, self._device = options, device
        self._set = parse_assignments(options.set)
        if decided := self._set.keys() & _DECIDED.keys():
            key = min(decided)
            raise ConfigError(f"--set {key}: {_DECIDED[key]} decides it here")

    def fresh(self, model: str, ds_config: str) -> Run:
        """Resolves the pretraining of a new model."""
        start = {"model": model, "tokenizer": self._options.tokenizer}
        return self._resolve("pretrain", model, ds_config, self._concerning("pretrain"), start)

    def started(self, stage: str, model: str, ds_config: str, folder: Path) -> Run:
        """Resolves a stage's training of the model in `folder`, with the folder's model fields.
        Without --set teacher, that model is the teacher, too."""
        options, settings = self._options, self._concerning(stage)
        settings = {k: v for k, v in settings.items() if k not in _names(ModelConfig)}
        if "teacher" in _names(STAGES[stage].recipe_type):
            settings.setdefault("teacher", str(folder))
        same_format = STAGES[stage].data_format == STAGES[options.stage].data_format
        data = options.data if same_format else options.other_data
        start = {"from_checkpoint": str(folder), "data": data}
        return self._resolve(stage, model, ds_config, settings, start)

    def _concerning(self, stage: str) -> dict[str, Any]:
        """Leaves out the settings that only the recipe of --stage has, and not the recipe of
        `stage`."""
        mine, asked = (_names(STAGES[s].recipe_type) for s in (stage, self._options.stage))
        return {key: value for key, value in self._set.items() if key not in asked - mine}

    def _resolve(
        self,
        stage: str,
        preset: str,
        ds_config: str,
        settings: dict[str, Any],
        start: dict[str, Any],
    ) -> Run:
        options = self._options
        micro = options.micro_batch or default_sizes(self._device.kind, preset).micro_batch_size
        sizes = {"micro_batch_size": micro, "train_batch_size": micro * options.accumulation}
        if options.precision != "auto":
            settings = settings | {"ds_config.bf16.enabled": options.precision == "bf16"}
            if "fp16" in load_ds_config(ds_config, {}):
                settings |= {"ds_config.fp16.enabled": False}
        arguments = collect_arguments(
            {"stage": stage, "ds_config": ds_config, "max_steps": _num_steps(options),
             "seq_len": options.seq_len, "set": settings | sizes, **start}
        )  # fmt: skip
        return Run.on(arguments, read_ranks(), self._device)


def _names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _without_experts(run: ResolvedRun, row: str, model: str) -> ResolvedRun:
    if row in EXPERT_ROWS and not run.config.num_experts:
        raise ConfigError(f"--rows {row}: {model} has no experts; minimind2-moe and -3-moe do")
    return replace(run, config=dense_config(run.config)) if row == "dense" else run


def dense_config(config: ModelConfig) -> ModelConfig:
    """Gives the same model with one feed-forward layer in place of experts, as wide as the experts
    that a token meets."""
    return dataclasses.replace(
        config,
        intermediate_size=config.active_ffn_size,
        num_experts=0,
        num_experts_per_tok=1,
        moe_intermediate_size=0,
        n_shared_experts=0,
        mlp_only_layers=(),
    )


def _save_start(run: Run, folder: Path) -> None:
    policy = build_trained(run.resolved).models.policy
    save_hf_folder(folder, run.resolved.config, dict(policy.named_parameters()), DTYPES["fp32"])
    run.tokenizer.save(folder)


def _draw(options: argparse.Namespace, runs: list[Run]) -> Documents:
    """Draws enough documents for the packed rows of every step, where the data has as many."""
    a_step = max(run.resolved.train_batch_size * run.resolved.seq_len for run in runs)
    return draw_documents(
        options.data,
        runs[0].tokenizer,
        max_tokens=options.document_tokens or DOCUMENT_TOKENS,
        wanted_tokens=a_step * _num_steps(options),
        seed=options.seed,
    )
