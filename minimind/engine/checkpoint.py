"""Finds checkpoint folders and loads them. minimind.engine.checkpoint_store writes them.

checkpoints/step-00000200/engine/    DeepSpeed's shards, one set per rank
                          model/     a Hugging Face folder with fp32 weights and the tokenizer,
                          adapter/   or, where adapters alone are trained, those in PEFT's format
                          meta.json  what the run was; written last, with every file's size and
                                     digest
checkpoints/latest, best             symbolic links

Other names beside them, such as a user's copies, are nobody's checkpoints.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.config.deepspeed_json import precision
from minimind.config.json_file import load_json
from minimind.errors import CheckpointError
from minimind.lora.folder import META_FILE
from minimind.runtime.digests import check_digests

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
"""Begins the name of a folder that is being written or removed."""
_STEP = re.compile(r"step-\d{8}")
_META = frozenset(
    {
        *("step", "state", "stage", "model", "recipe", "ds_config", "world_size", "zero_stage"),
        *("fingerprint", "helpers_fingerprint", "files"),
    }
)
"""The fields of meta.json that resuming a run reads."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Names a complete checkpoint on disk."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def load_checkpoint_meta(folder: Path) -> Checkpoint:
    """Reads a checkpoint's meta.json and checks that every file it lists is there, at the listed
    size. Raises CheckpointError."""
    path = folder / META_FILE
    try:
        meta = load_json(path)
        files = dict[str, int](meta["files"])
        int(meta["step"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the description of a checkpoint") from None
    if missing := sorted(_META - meta.keys()):
        raise CheckpointError(
            f"{path}: holds no {missing[0]}, as checkpoints of other versions do: start a new run "
            "from its weights with --from_checkpoint"
        )
    for name, size in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, but {size} were written")
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


def find_latest(folder: Path) -> Checkpoint | None:
    """Finds the newest complete checkpoint in a run's `checkpoints` folder, reading every byte of
    it, and warns of damaged ones that it skips. Gives None where there are no checkpoints; raises
    CheckpointError where all are damaged."""
    problems = []
    for step in reversed(list_steps(folder)):
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
    or precision, under which DeepSpeed lays its states out differently. Raises CheckpointError for
    another optimizer, which would not know the states."""
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
    """Raises CheckpointError where the teacher or reference no longer has the weights it had when
    the run began. A helper may be named by a run's folder, whose best checkpoint may have
    changed."""
    if checkpoint.meta["helpers_fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{checkpoint.folder} was trained beside other weights than its teacher or reference "
            "has now: a run's best checkpoint may be another one since. Resume with the one it "
            "began with: --from_checkpoint RUN/checkpoints/step-N (--set teacher=… for a teacher)"
        )
