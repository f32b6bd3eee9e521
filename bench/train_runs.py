"""What the rows of bench.train_step train: runs as launch/train.py resolves them.

Pretraining starts from fresh weights, on documents cut at one length, which a padded row can hold
too. Every other stage starts from those same weights as a folder on disk, and reads its own data as
a run does.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from bench.documents import Documents, FirstSteps, PackedSteps, draw_documents
from minimind.config.deepspeed_json import load_ds_config
from minimind.config.model import ModelConfig
from minimind.config.recipe import parse_assignments
from minimind.config.sizes import default_sizes
from minimind.data.token_cache import build_token_cache
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.run.arguments import parse_arguments
from minimind.run.build import build_trained
from minimind.run.resolve import ResolvedRun, find_tokenizer
from minimind.run.run import Run
from minimind.runtime.devices import DTYPES, Device
from minimind.runtime.ranks import read_ranks
from minimind.samples.files import sample_data_path
from minimind.stages import STAGES

DOCUMENT_TOKENS = 340
_MEASURED_STEPS = 6
"""Steps taken after the timed ones, at most: one for the peak of memory, one for the parts of a
step, and on a GPU two each for operators and for the profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """All that a worker process needs to build its row."""

    name: str
    ds_config_name: str | None
    """Of a row in the engine."""
    run: ResolvedRun
    documents: Documents | None
    """None: the run's own data."""
    original_batch: int
    steps: int
    """Optimizer steps that will be asked for, all told."""

    @property
    def accumulation(self) -> int:
        return int(self.run.ds_config["gradient_accumulation_steps"])

    def open_run(self) -> tuple[Run, PackedSteps | FirstSteps]:
        """Gives the run, in the process that calls it, and what a row of it reads."""
        run, resolved = Run(self.run, find_tokenizer(self.run.arguments), read_ranks()), self.run
        if self.documents is None:
            return run, FirstSteps(run.loader, self.steps, resolved.train_batch_size)
        return run, PackedSteps(
            self.documents,
            seq_len=resolved.seq_len,
            micro_batch=resolved.micro_batch_size,
            accumulation=self.accumulation,
        )


def row_stage(row: str, stage: str) -> str:
    """The stage that a row trains: its own, where it is named after one."""
    return row if row in STAGES else stage


def build_specs(
    options: argparse.Namespace, model: str, rows: list[str], device: Device, folder: Path
) -> list[RowSpec]:
    """One for each row, engine rows one for each JSON; the others take the first JSON. `folder` is
    empty and takes what the runs start from. Raises a MiniMindError for what cannot run."""
    first, documents = options.ds_config[0], None
    stages = sorted({options.stage, *(row_stage(row, options.stage) for row in rows)})
    if options.other_data and len({STAGES[stage].data_format for stage in stages}) == 1:
        raise ConfigError(f"--other_data {options.other_data}: no row reads another format")
    if options.stage == "pretrain":
        runs = {
            ("pretrain", ds): _resolve(options, "pretrain", model, ds, device)
            for ds in options.ds_config
        }
        documents = _draw(options, list(runs.values()))
    else:
        if options.document_tokens is not None:
            raise ConfigError("--document_tokens is for --stage pretrain: others cut no documents")
        _save_start(_resolve(options, "pretrain", model, first, device), folder)
        runs = {
            (stage, ds): _resolve(options, stage, model, ds, device, folder)
            for stage in stages
            for ds in (options.ds_config if stage == options.stage else [first])
        }
        for run in runs.values():
            _ = run.loader  # fills the token caches, which the rows' processes then map
    specs = []
    for row in rows:
        stage = row_stage(row, options.stage)
        is_in_engine = row in ("engine", "two_models") or row in STAGES
        for ds in options.ds_config if row == "engine" else [first]:
            spec = RowSpec(
                name=row,
                ds_config_name=ds if is_in_engine else None,
                run=runs[stage, ds].resolved,
                documents=documents,
                original_batch=options.original_batch,
                steps=_num_steps(options),
            )
            specs.append(spec)
    return specs


def _num_steps(options: argparse.Namespace) -> int:
    return options.warmup + options.steps + _MEASURED_STEPS


def _resolve(
    options: argparse.Namespace,
    stage: str,
    model: str,
    ds_config: str,
    device: Device,
    start: Path | None = None,
) -> Run:
    fixed = {
        "micro_batch_size": "--micro_batch",
        "train_batch_size": "--accumulation",
        "max_steps": "--steps",
    }
    for key in parse_assignments(options.set):
        if key in fixed:
            raise ConfigError(f"--set {key}: {fixed[key]} decides it here")
    micro_batch = options.micro_batch or default_sizes(device.kind, model).micro_batch_size
    settings = _concerning(options, stage, start)
    settings += [f"micro_batch_size={micro_batch}"]
    settings += [f"train_batch_size={micro_batch * options.accumulation}"]
    if options.precision != "auto":
        enabled = str(options.precision == "bf16").lower()
        settings += [f"ds_config.bf16.enabled={enabled}"]
        if "fp16" in load_ds_config(ds_config, {}):
            settings += ["ds_config.fp16.enabled=false"]
    argv = ["--stage", stage, "--ds_config", ds_config]
    argv += ["--max_steps", str(_num_steps(options))]
    argv += ["--from_checkpoint", str(start)] if start else ["--model", model]
    argv += ["--tokenizer", options.tokenizer] if options.tokenizer and not start else []
    same_format = STAGES[stage].data_format == STAGES[options.stage].data_format
    if start and (data := options.data if same_format else options.other_data):
        argv += ["--data", data]
    argv += ["--seq_len", str(options.seq_len)] if options.seq_len else []
    for setting in settings:
        argv += ["--set", setting]
    return Run.on(parse_arguments(argv), read_ranks(), device)


def _concerning(options: argparse.Namespace, stage: str, start: Path | None) -> list[str]:
    """Those of --set that a run takes: a row of another stage than --stage knows fewer options, and
    a folder to start from brings the model's fields. A teacher is the student's equal by default.
    """
    mine, asked = (
        {field.name for field in fields(STAGES[name].recipe_type)}
        for name in (stage, options.stage)
    )
    left_out = asked - mine
    if start:
        left_out |= {field.name for field in fields(ModelConfig)}
    keys = [item.partition("=")[0].strip() for item in options.set]
    kept = [item for key, item in zip(keys, options.set, strict=True) if key not in left_out]
    if start and "teacher" in mine and "teacher" not in keys:
        kept.append(f"teacher={start}")
    return kept


def _save_start(run: Run, folder: Path) -> None:
    policy = build_trained(run.resolved).models.policy
    save_hf_folder(folder, run.resolved.config, dict(policy.named_parameters()), DTYPES["fp32"])
    run.tokenizer.save(folder)


def _draw(options: argparse.Namespace, runs: list[Run]) -> Documents:
    """Enough for the packed rows of every step, where the data has as much."""
    tokenizer, resolved = runs[0].tokenizer, [run.resolved for run in runs]
    a_step = max(run.train_batch_size * run.seq_len for run in resolved)
    return draw_documents(
        build_token_cache(options.data or str(sample_data_path("train")), tokenizer, progress=True),
        max_tokens=options.document_tokens or DOCUMENT_TOKENS,
        wanted_tokens=a_step * _num_steps(options),
        pad_id=tokenizer.pad_id,
        seed=options.seed,
    )
