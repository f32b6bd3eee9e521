"""Reads how a checkpoint was trained, from the files of its run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.config.json_file import load_json
from minimind.errors import CheckpointError
from minimind.lora.folder import META_FILE, find_model_folder

_MAX_STAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Says how one stage of a model's training went."""

    stage: str
    steps: int
    tokens: int
    rows_per_step: int
    row_length: int
    learning_rate: float
    data: tuple[str, ...]
    """The names of the data files, without their folders; none for the stage's sample data."""
    val_loss: float | None
    """The validation loss after the last of these steps, if it was measured then."""
    earlier: TrainingRecord | None
    """The stage before it, where its files are still there."""


def read_training(model_folder: Path, num_before: int = 0) -> TrainingRecord | None:
    """Reads the record of the checkpoint that holds a model folder. Gives None where the folder is
    in no checkpoint, or in one of another version."""
    checkpoint = model_folder.resolve().parent
    try:
        meta = load_json(checkpoint / META_FILE)
        recipe, given = meta["recipe"], meta["arguments"]["run"]
        return TrainingRecord(
            stage=str(meta["stage"]),
            steps=int(meta["step"]),
            tokens=int(meta["state"]["tokens"]),
            rows_per_step=int(recipe["train_batch_size"]),
            row_length=int(recipe["seq_len"]),
            learning_rate=float(recipe["learning_rate"]),
            data=tuple(Path(str(name)).name for name in given.get("data") or ()),
            val_loss=_read_val_loss(checkpoint.parent.parent / "metrics.csv", int(meta["step"])),
            earlier=_read_earlier(given.get("from_checkpoint"), num_before + 1),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def _read_earlier(checkpoint: Any, num_before: int) -> TrainingRecord | None:
    if not checkpoint or num_before > _MAX_STAGES:
        return None
    try:
        return read_training(find_model_folder(Path(checkpoint)), num_before)
    except CheckpointError:  # moved or deleted since, or "none"
        return None


def _read_val_loss(path: Path, step: int) -> float | None:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["step"] == str(step)]
        return float(rows[-1]["val_loss"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
