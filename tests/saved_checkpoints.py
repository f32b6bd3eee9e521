"""Saves checkpoints of a fake engine, for tests of how they are written and found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine
from small_models import random_model, small_config

from minimind.engine.checkpoint_store import CheckpointStore
from minimind.runtime.ranks import Ranks

CONFIG = small_config()
META: dict[str, Any] = {
    **{"state": {"step": 0}, "stage": "pretrain", "model": {}, "recipe": {}, "ds_config": {}},
    **{"world_size": 1, "zero_stage": 2, "fingerprint": "data", "helpers_fingerprint": "teacher"},
}
SECOND_OF_TWO = Ranks(1, 1, 2)


class FakeTokenizer:
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def engine_of_a_model(ranks: Ranks | None = None) -> FakeEngine:
    weights = dict(random_model(CONFIG).named_parameters())
    return FakeEngine(ranks or Ranks(0, 0, 1), weights=weights)


def begin(store: CheckpointStore, step: int, is_best: bool = False) -> Path:
    """Begins to save a step, and gives the folder that it will have."""
    meta = META | {"step": step}
    store.save(step, meta, CONFIG, FakeTokenizer().save, is_best=is_best)
    return store.folder / f"step-{step:08d}"


def save(store: CheckpointStore, step: int, is_best: bool = False) -> Path:
    """Saves a step to the end."""
    folder = begin(store, step, is_best)
    store.confirm()
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder, and every link's target."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
