"""What the rows of bench.train_step train: runs as launch/train.py would resolve them.

Pretraining starts from fresh weights, on documents cut at one length, which a padded row can hold
too. Every other stage starts from those same weights as a folder on disk, and reads its own data as
a run does.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bench.documents import Documents, draw_documents
from bench.padded_rows import PADDED_ROWS
from bench.stage_rows import row_stage
from bench.train_rows import RowSpec
from minimind.config.deepspeed_json import load_ds_config
from minimind.config.model import ModelConfig
from minimind.config.recipe import default_sizes, parse_assignments
from minimind.data.sample_files import sample_data_path
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.model.state_dict import save_hf_folder
from minimind.run.flags import parse_train_arguments
from minimind.run.inputs import build_loaders
from minimind.run.resolve import DTYPES, ResolvedRun, resolve_run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import read_ranks
from minimind.stages import STAGES

DOCUMENT_TOKENS = 340
_MEASURED_STEPS = 2
"""Steps taken after the timed ones."""


def build_specs(
    options: argparse.Namespace,
    model: str,
    rows: list[str],
    tokenizer: Tokenizer,
    device: Device,
    folder: Path,
) -> list[RowSpec]:
    """One for each row, engine rows one for each JSON; the others take the first JSON. `folder` is
    empty and takes what the runs start from. Raises a MiniMindError for what cannot run."""
    first, documents = options.ds_config[0], None
    stages = sorted({options.stage, *(row_stage(row, options.stage) for row in rows)})
    if options.other_data and len({STAGES[stage].data_format for stage in stages}) == 1:
        raise ConfigError(f"--other_data {options.other_data}: no row reads another format")
    if options.stage == "pretrain":
        runs = {
            ("pretrain", ds): _resolve(options, "pretrain", model, ds, tokenizer, device)
            for ds in options.ds_config
        }
        documents = _draw(options, list(runs.values()), tokenizer)
    else:
        if options.document_tokens is not None:
            raise ConfigError("--document_tokens is for --stage pretrain: others cut no documents")
        fresh = _resolve(options, "pretrain", model, first, tokenizer, device)
        _save_start(fresh, tokenizer, folder)
        runs = {
            (stage, ds): _resolve(options, stage, model, ds, tokenizer, device, folder)
            for stage in stages
            for ds in (options.ds_config if stage == options.stage else [first])
        }
        for run in runs.values():  # fills the token caches, which the rows' processes then map
            build_loaders(run, tokenizer, read_ranks())
    specs = []
    for row in rows:
        stage = row_stage(row, options.stage)
        for ds in options.ds_config if row == "engine" else [first]:
            spec = RowSpec(
                name=row,
                ds_config_name=ds if row not in (*PADDED_ROWS, "plain_loop", "frozen") else None,
                run=runs[stage, ds],
                documents=documents,
                original_batch=options.original_batch,
                steps=options.warmup + options.steps + _MEASURED_STEPS,
            )
            specs.append(spec)
    return specs


def _resolve(
    options: argparse.Namespace,
    stage: str,
    model: str,
    ds_config: str,
    tokenizer: Tokenizer,
    device: Device,
    start: Path | None = None,
) -> ResolvedRun:
    fixed = {"micro_batch_size": "--micro_batch", "train_batch_size": "--accumulation"}
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
    argv += ["--from_checkpoint", str(start)] if start else ["--model", model]
    same_format = STAGES[stage].data_format == STAGES[options.stage].data_format
    if start and (data := options.data if same_format else options.other_data):
        argv += ["--data", data]
    argv += ["--seq_len", str(options.seq_len)] if options.seq_len else []
    for setting in settings:
        argv += ["--set", setting]
    arguments = parse_train_arguments(argv, {n: s.recipe_type for n, s in STAGES.items()})
    return resolve_run(arguments, tokenizer, read_ranks(), device)


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


def _save_start(run: ResolvedRun, tokenizer: Tokenizer, folder: Path) -> None:
    policy = STAGES[run.stage](run.recipe).build_models(BuildContext(config=run.config)).policy
    save_hf_folder(folder, run.config, dict(policy.named_parameters()), DTYPES["fp32"])
    tokenizer.save(folder)


def _draw(options: argparse.Namespace, runs: list[ResolvedRun], tokenizer: Tokenizer) -> Documents:
    """Enough for the packed rows of every step, where the data has as much."""
    path = options.data or str(sample_data_path("train"))
    steps = options.warmup + options.steps + _MEASURED_STEPS
    return draw_documents(
        build_token_cache(path, tokenizer, progress=True),
        max_tokens=options.document_tokens or DOCUMENT_TOKENS,
        wanted_tokens=max(run.train_batch_size * run.seq_len for run in runs) * steps,
        pad_id=tokenizer.pad_id,
        seed=options.seed,
    )
