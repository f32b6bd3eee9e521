"""Finds checkpoint folders and loads them. minimind.engine.checkpoint_store writes them.

checkpoints/step-00000200/engine/    DeepSpeed's shards, one set per rank
                          model/     a Hugging Face folder with fp32 weights and the tokenizer,
                          adapter/   or, where adapters alone are trained, those in PEFT's format
                          meta.json  describes the run; written last, with every file's size and
                                     digest
checkpoints/latest, best             symbolic links

Folders with other names, such as a user's copies, do not count as checkpoints.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.config.deepspeed_json import precision
from minimind.config.json_file import load_json
from minimind.config.typed import convert
from minimind.errors import CheckpointError, ConfigError
from minimind.lora.folder import META_FILE
from minimind.runtime.digests import check_digests

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
"""The prefix of a folder's name while the folder is being written or removed."""
_STEP = re.compile(r"step-\d{8}")
_Table = dict[str, Any]


@dataclass
class _Sections:
    """Names the sections of a saved DeepSpeed JSON that resuming a run reads."""

    optimizer: _Table | None = None
    bf16: _Table | None = None
    fp16: _Table | None = None


_META: dict[str, Any] = {
    **{"step": int, "state": _Table, "stage": str, "model": _Table, "recipe": _Table},
    **{"ds_config": _Sections, "world_size": int, "zero_stage": int},
    **{"fingerprint": str, "helpers_fingerprint": str, "files": dict[str, int]},
}
"""The fields of meta.json that resuming a run reads, and their types."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Names a complete checkpoint on disk."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta["step"]


def load_checkpoint_meta(folder: Path) -> Checkpoint:
    """Reads a checkpoint's meta.json and checks that every file it lists is there, at the listed
    size. Raises CheckpointError."""
    path = folder / META_FILE
    try:
        meta = load_json(path)
        if not {"step", "files"} <= dict(meta).keys():
            raise ValueError("no step, or no files")
        for name in _META.keys() & meta.keys():
            convert(meta[name], _META[name], name)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not the description of a checkpoint: {error}") from None
    if missing := sorted(_META.keys() - meta.keys()):
        raise CheckpointError(
            f"{path}: holds no {missing[0]}, so another version of MiniMind wrote it: start a new "
            "run from its weights with --from_checkpoint"
        )
    for name, size in meta["files"].items():
        file = folder / name
        try:
            found = file.stat().st_size if file.is_file() else None
        except (OSError, ValueError):  # the name is too long, or holds a lone surrogate
            found = None
        if found is None:
            raise CheckpointError(f"{str(file)[:300]}: missing from the checkpoint")
        if found != size:
            raise CheckpointError(f"{file}: {found} bytes, but {size} were written")
    return Checkpoint(folder.resolve(), meta)


def step_name(step: int) -> str:
    """Names the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Gives the step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def list_steps(folder: Path) -> list[Path]:
    """Lists the checkpoints of a run's `checkpoints` folder, damaged ones too, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name))


def find_latest(folder: Path, before: int | None = None) -> Checkpoint | None:
    """Finds the newest complete checkpoint in a run's `checkpoints` folder, reading every byte of
    it, and warns of damaged ones that it skips. A checkpoint of a step below `before` is preferred
    to any later one. Gives None where there are no checkpoints; raises CheckpointError where all
    are damaged."""
    problems = []
    newest_first = reversed(list_steps(folder))
    for step in sorted(newest_first, key=lambda s: before is not None and step_of(s) >= before):
        try:
            checkpoint = load_checkpoint_meta(step)
            if step.name != step_name(checkpoint.step):
                raise CheckpointError(f"{step}: a copy of the checkpoint of step {checkpoint.step}")
            check_digests(step, checkpoint.meta)
            return checkpoint
        except CheckpointError as error:
            logger.warning("%s: passed over, the checkpoint before it is used", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{folder}: no checkpoint is whole: {'; '.join(problems)}")
    return None


def needs_conversion(
    checkpoint: Checkpoint, world_size: int, zero_stage: int, ds_config: dict[str, Any]
) -> bool:
    """Tells whether the shards were saved by another number of ranks, or under another ZeRO stage
    or precision. DeepSpeed's states are then laid out differently and must be converted. Raises
    CheckpointError where the run has another optimizer, which could not use the states."""
    meta = checkpoint.meta
    saved, now = (
        (config.get("optimizer") or {}).get("type") for config in (meta["ds_config"], ds_config)
    )
    if saved != now:
        raise CheckpointError(
            f"{checkpoint.folder} was saved with the optimizer {saved} and cannot be resumed with "
            f"{now}; keep the old one with --set optimizer={saved}, or start a new run from its "
            "weights with --from_checkpoint"
        )
    return (
        meta["zero_stage"] != zero_stage
        or precision(meta["ds_config"]) != precision(ds_config)
        or (zero_stage > 0 and meta["world_size"] != world_size)
    )


def check_same_helpers(checkpoint: Checkpoint, fingerprint: str) -> None:
    """Raises CheckpointError where the weights of the teacher or reference have changed since the
    run began. They can change where a run's folder names the helper: its best checkpoint may be a
    newer one."""
    if checkpoint.meta["helpers_fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{checkpoint.folder} was trained beside other weights than its teacher or reference "
            "has now: perhaps a run's folder names it, whose best checkpoint is another one since. "
            "Resume with the one that the run began with: --from_checkpoint "
            "RUN/checkpoints/step-N (--set teacher=… for a teacher)"
        )
