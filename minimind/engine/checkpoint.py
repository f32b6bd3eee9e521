"""Writes and finds checkpoint folders, each of which is complete or absent.

checkpoints/step-00000200/engine/    DeepSpeed's shards, one set per rank
                          model/     a Hugging Face folder with fp32 weights and the tokenizer,
                          adapter/   or, where adapters alone are trained, those in PEFT's format
                          meta.json  what the run was; written last, with every file's size
checkpoints/latest, best             symbolic links
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minimind.config.deepspeed_json import precision
from minimind.config.json_file import load_json
from minimind.config.model import ModelConfig
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import SaveTrained
from minimind.engine.universal import convert_to_universal
from minimind.errors import CheckpointError, TrainingError
from minimind.lora.folder import BEST, LATEST
from minimind.model.state_dict import save_hf_folder
from minimind.runtime.whole_files import flush_to_disk

logger = logging.getLogger(__name__)

META_FILE = "meta.json"
_UNFINISHED = ".unfinished-"
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


class CheckpointStore:
    """Saves the checkpoints of one run and deletes old ones. All ranks call its methods; only rank
    0 renames and deletes."""

    def __init__(
        self,
        folder: Path,
        engine: DeepSpeedEngine,
        keep: int,
        save_trained: SaveTrained | None = None,
    ) -> None:
        self.folder = folder
        self._engine = engine
        self._keep = keep
        self._save_trained = save_trained
        if engine.ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(f"{_UNFINISHED}*"):
                _remove(unfinished)

    def save(
        self,
        step: int,
        meta: dict[str, Any],
        config: ModelConfig,
        save_tokenizer: Callable[[Path], None],
        *,
        is_best: bool,
    ) -> Path:
        """Writes a temporary folder beside the checkpoint's and renames it into place. If any rank
        cannot write, every rank raises TrainingError, and earlier checkpoints and `latest` stay."""
        final = self.folder / f"step-{step:08d}"
        unfinished = self.folder / f"{_UNFINISHED}{final.name}"
        weights = self._engine.full_weights()
        problem = ""
        try:
            if self._engine.ranks.is_main:
                _remove(unfinished)
                unfinished.mkdir(parents=True)
            self._engine.barrier()
            self._engine.save(unfinished)
            if self._engine.ranks.is_main:
                if self._save_trained:
                    folder = self._save_trained(unfinished, weights)
                else:
                    folder = unfinished / "model"
                    save_hf_folder(folder, config, weights, torch.float32)
                save_tokenizer(folder)
        except Exception as error:  # torch raises RuntimeError where the disk is full
            problem = str(error) or repr(error)  # a MemoryError has no text
        del weights
        problems = [p for p in self._engine.gather_texts([problem]) if p]
        if not problems and self._engine.ranks.is_main:
            try:
                self._finish(unfinished, final, meta, is_best=is_best)
            except OSError as error:
                problems = [str(error) or repr(error)]
        problems = [p for p in self._engine.gather_texts(problems or [""]) if p]
        if problems:
            if self._engine.ranks.is_main:
                _remove(unfinished)
            free = shutil.disk_usage(self.folder).free
            raise TrainingError(
                f"{final}: the checkpoint of step {step} could not be written "
                f"({free / 1e9:.1f} GB free there): {problems[0].splitlines()[0]}"
            )
        return final

    def _finish(self, unfinished: Path, final: Path, meta: dict[str, Any], is_best: bool) -> None:
        files = [file for file in sorted(unfinished.rglob("*")) if file.is_file()]
        sizes = {str(file.relative_to(unfinished)): file.stat().st_size for file in files}
        for file in files:
            flush_to_disk(file)
        text = json.dumps(meta | {"files": sizes}, indent=1) + "\n"
        (unfinished / META_FILE).write_text(text, encoding="utf-8")
        flush_to_disk(unfinished / META_FILE)
        if final.exists():  # a resumed run that saves the same step again
            _remove(final)
        unfinished.rename(final)
        flush_to_disk(self.folder)
        _link(self.folder / LATEST, final.name)
        if is_best:
            _link(self.folder / BEST, final.name)
        self._prune()

    def _prune(self) -> None:
        kept = {self._link_target(name) for name in (LATEST, BEST)}
        steps = self.list_steps()
        for folder in steps[: max(0, len(steps) - self._keep)]:
            if folder.name not in kept:
                _remove(folder)

    def list_steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _link_target(self, name: str) -> str:
        link = self.folder / name
        return os.readlink(link) if link.is_symlink() else ""


def find_latest(folder: Path) -> Checkpoint | None:
    """Finds the newest complete checkpoint in a run's `checkpoints` folder and warns of damaged
    ones that it skips. Gives None where there are no checkpoints; raises CheckpointError where all
    are damaged."""
    steps = sorted(folder.glob("step-*"), reverse=True)
    problems = []
    for step in steps:
        try:
            return load_checkpoint_meta(step)
        except CheckpointError as error:
            logger.warning("%s: passed over", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{folder}: no checkpoint is whole: {'; '.join(problems)}")
    return None


def needs_universal(
    checkpoint: Checkpoint, world_size: int, zero_stage: int, ds_config: dict[str, Any]
) -> bool:
    """Tells whether the shards were saved by another number of ranks, so that they must be
    converted. Raises CheckpointError for another ZeRO stage or precision, under which DeepSpeed
    lays its states out differently."""
    meta = checkpoint.meta
    for what, saved, now in (
        ("ZeRO stage", meta["zero_stage"], zero_stage),
        ("precision", precision(meta["ds_config"]), precision(ds_config)),
    ):
        if saved != now:
            raise CheckpointError(
                f"{checkpoint.folder} was saved under {what} {saved} and cannot be resumed under "
                f"{now}; start a new run from its weights with --from_checkpoint"
            )
    return zero_stage > 0 and meta["world_size"] != world_size


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


def load_engine_state(engine: DeepSpeedEngine, checkpoint: Checkpoint, *, universal: bool) -> None:
    """Loads a checkpoint's weights, optimizer state and loss scale into the engine."""
    if not universal:
        engine.load(checkpoint.folder)
        return
    converted = checkpoint.folder.parent / f"{_UNFINISHED}universal-{checkpoint.folder.name}"
    if engine.ranks.is_main:
        _remove(converted)
        convert_to_universal(checkpoint.folder, converted)
    engine.barrier()
    engine.load(converted)
    engine.barrier()
    if engine.ranks.is_main:
        _remove(converted)


def _link(link: Path, target: str) -> None:
    fresh = link.with_name(f".{link.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    os.replace(fresh, link)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
