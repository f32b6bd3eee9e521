"""Makes a dry run: rehearses a run, describes its work, and checks that it fits the device's
memory."""

from __future__ import annotations

import dataclasses
from typing import Any

from minimind.config.deepspeed_json import load_ds_config
from minimind.errors import ConfigError
from minimind.rehearsal.rehearse import known_device, point_of, rehearse, rehearse_all, why_not
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import TrainArguments
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run
from minimind.runtime.devices import Device, device_by_data_sheet, find_device


def read_place(text: str) -> tuple[Device, int]:
    """Reads DEVICE[:RANKS], such as "h200:8", "rtx4090" or "cpu:2", as a device and a number of
    ranks. Raises ConfigError."""
    name, _, ranks = text.partition(":")
    if ranks and (not ranks.isdecimal() or not int(ranks)):
        raise ConfigError(f"--on {text}: {ranks!r} is no number of ranks; write it as h200:8")
    device = known_device(name)
    found = find_device() if device == "cpu" else device_by_data_sheet(device)
    if device == "cpu" and found.kind != "cpu":
        raise ConfigError(f"--on {text}: this machine has a GPU; hide it by CUDA_VISIBLE_DEVICES=")
    return found, int(ranks or 1)


def describe_rehearsal(run: Run) -> str:
    """Rehearses a resolved run and describes the result, or why it could not be rehearsed. Raises
    ConfigError where the step needs more memory than the device has."""
    if problem := why_not(run.resolved):
        return f"rehearsed  not: {problem}"
    found = rehearse(run)
    check_memory(run, found)
    return found.describe()


def check_memory(run: Run, found: Rehearsal) -> None:
    """Raises ConfigError where the rehearsed step's tensors need more than the device's whole
    memory (free or not, without swap); the message names the largest micro-batch that fits."""
    resolved, there = run.resolved, run.resolved.device.memory_bytes
    # Ranks on CPUs share the machine's memory.
    sharing = run.ranks.local_world_size if resolved.device.kind == "cpu" else 1
    needed = sharing * found.peak_bytes
    if there is None or needed <= there:
        return
    smaller = [
        _in_micro_batches(resolved, rows)
        for rows in range(resolved.micro_batch_size - 1, 0, -1)
        if resolved.train_batch_size % (rows * resolved.world_size) == 0
    ]
    tried = zip(smaller, rehearse_all([point_of(run, one) for one in smaller]), strict=True)
    fitting = (arguments for arguments, one in tried if sharing * one.peak_bytes <= there)
    advice = (
        "no micro-batch fits; take a smaller --model, a shorter --seq_len, --set "
        "activation_checkpointing=true, or --ds_config zero2_offload.json or zero3.json"
    )
    if largest := next(fitting, None):
        advice = _spell(resolved.arguments, largest)
    raise ConfigError(
        f"memory {needed / 2**30:.2f} GiB{f' for {sharing} ranks' * (sharing > 1)}, more than the "
        f"{there / 2**30:.2f} GiB of {resolved.device.name}: {advice}"
    )


def _in_micro_batches(run: ResolvedRun, rows: int) -> TrainArguments:
    """Gives the run's arguments with micro-batches of `rows` rows. Batch sizes that the DeepSpeed
    JSON gives are changed there, else the recipe's."""
    arguments = run.arguments
    file = load_ds_config(arguments.get("ds_config"), arguments.ds_config)
    given: dict[str, Any] = {}
    if isinstance(file.get("gradient_accumulation_steps"), int):
        given["gradient_accumulation_steps"] = run.train_batch_size // (rows * run.world_size)
        given["train_batch_size"] = run.train_batch_size
    if isinstance(file.get("train_micro_batch_size_per_gpu"), int):
        given["train_micro_batch_size_per_gpu"] = rows
        return dataclasses.replace(arguments, ds_config=arguments.ds_config | given)
    return dataclasses.replace(
        arguments,
        ds_config=arguments.ds_config | given,
        recipe=arguments.recipe | {"micro_batch_size": rows},
    )


def _spell(before: TrainArguments, after: TrainArguments) -> str:
    """Writes the changed settings as --set flags for the user to add."""
    changed = {f"ds_config.{key}": value for key, value in after.ds_config.items()
               if before.ds_config.get(key) != value}  # fmt: skip
    rows = after.ds_config.get("train_micro_batch_size_per_gpu")
    if before.recipe.get("micro_batch_size") != after.recipe.get("micro_batch_size"):
        rows = changed["micro_batch_size"] = after.recipe["micro_batch_size"]
    sets = " ".join(f"--set {key}={value}" for key, value in changed.items())
    return f"a micro-batch of {rows} rows fits: {sets}"
