"""Writes checkpoint folders, each of which is complete or absent, and deletes old ones.

A save has two parts. While the ranks wait, the state is copied: DeepSpeed writes the shards, from
memory to the system's cache, and rank 0 gathers the weights. The rest is done in the background
while the ranks train: the weights' files, the flush to disk, the digests, and the rename that makes
the checkpoint visible.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.engine.checkpoint import UNFINISHED, step_name, step_of
from minimind.engine.deepspeed_engine import TAG, DeepSpeedEngine
from minimind.engine.publish import list_files, prune, publish, remove
from minimind.engine.stage import SaveTrained
from minimind.errors import TrainingError
from minimind.model.state_dict import save_hf_folder
from minimind.runtime.whole_files import flush_to_disk

logger = logging.getLogger(__name__)

_TORCH_CANNOT_WRITE = ("inline_container.cc", "PytorchStreamWriter")
"""Parts of PyTorch's error messages where a file cannot be written; the messages name no cause."""


class CheckpointStore:
    """Saves the checkpoints of one run and deletes old ones. All ranks call its methods, at the
    same points; only rank 0 renames and deletes. At most one save is under way."""

    def __init__(
        self,
        folder: Path,
        engine: DeepSpeedEngine,
        keep: int,
        save_trained: SaveTrained | None = None,
        *,
        keep_every: int = 0,
        saved: Callable[[Path, bool], None] = lambda *_: None,
    ) -> None:
        """`saved` is called in a background thread of rank 0, with the folder of each finished
        checkpoint and whether that is the best one."""
        self.folder = folder
        self._engine = engine
        self._keep, self._keep_every = keep, keep_every
        self._save_trained = save_trained
        self._saved = saved
        self._thread: threading.Thread | None = None
        self._problem: TrainingError | None = None
        if engine.ranks.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)

    def save(
        self,
        step: int,
        meta: dict[str, Any],
        config: ModelConfig,
        save_tokenizer: Callable[[Path], None],
        *,
        is_best: bool,
    ) -> None:
        """Copies the state and begins to write it; `confirm` waits for the end. A temporary folder
        beside the checkpoint's is renamed into place. If any rank cannot write, every rank raises
        TrainingError, here or in `confirm`, and earlier checkpoints and `latest` stay."""
        self.confirm()
        final = self.folder / step_name(step)
        unfinished = self.folder / f"{UNFINISHED}{final.name}"
        weights: dict[str, Tensor] = {}

        def make_folder() -> None:
            if self._engine.ranks.is_main:
                remove(unfinished)
                unfinished.mkdir(parents=True)

        def copy_state() -> None:
            problem = _problem_of(lambda: weights.update(self._engine.full_weights()))
            self._engine.save(unfinished)
            if problem:
                raise RuntimeError(problem)

        def write_model(parent: Path) -> None:
            if self._save_trained:
                folder = self._save_trained(parent, weights)
            else:
                folder = parent / "model"
                save_hf_folder(folder, config, weights, torch.float32)
            save_tokenizer(folder)

        for work in (make_folder, copy_state):
            if problems := self._agree(self._engine.gather_texts, work):
                raise self._give_up(final, unfinished, problems)
        rest = partial(self._finish, final, unfinished, meta, write_model, is_best=is_best)
        self._thread = threading.Thread(target=rest, name="save", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Waits until the save under way, if any, has ended. Raises TrainingError on every rank if
        it failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise problem

    def close(self) -> None:
        """Waits for the save under way and logs its error: the run ends for another reason."""
        try:
            self.confirm()
        except TrainingError as error:
            if self._engine.ranks.is_main:
                logger.warning("%s", error)

    def _finish(
        self,
        final: Path,
        unfinished: Path,
        meta: dict[str, Any],
        write_model: Callable[[Path], None],
        *,
        is_best: bool,
    ) -> None:
        """Does the background part of a save, on every rank."""
        is_main = self._engine.ranks.is_main

        def write() -> None:
            if is_main:
                write_model(unfinished)
            # Another host's shards may be in its memory alone, so every rank flushes them.
            for file in list_files(unfinished if is_main else unfinished / TAG):
                flush_to_disk(file)

        def put_in_place() -> None:
            if is_main:
                publish(unfinished, final, meta, is_best=is_best)
                prune(self.folder, self._keep, self._keep_every)

        try:
            for work in (write, put_in_place):
                if problems := self._agree(self._engine.gather_apart, work):
                    self._problem = self._give_up(final, unfinished, problems)
                    return
            if is_main:
                self._saved(final, is_best)
        except Exception as error:  # another rank's process has ended
            problem = self._give_up(final, unfinished, [str(error) or repr(error)])
            problem.__cause__ = error  # the run reads it to find out whether a rank is lost
            self._problem = problem

    def _agree(
        self, gather: Callable[[list[str]], list[str]], work: Callable[[], None]
    ) -> list[str]:
        """Calls `work` on this rank, and gives the problems of all ranks; an empty list means that
        every rank has succeeded."""
        ranks, problem = self._engine.ranks, _problem_of(work)
        if problem and ranks.world_size > 1:
            problem = f"rank {ranks.rank}: {problem}"
        return [found for found in gather([problem]) if found]

    def _give_up(self, final: Path, unfinished: Path, problems: list[str]) -> TrainingError:
        free = _free_space(self.folder)
        if self._engine.ranks.is_main:
            remove(unfinished)
        return TrainingError(
            f"{final}: the checkpoint of step {step_of(final)} could not be written ({free}): "
            f"{problems[0].splitlines()[0]}"
        )


def _problem_of(work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:
        text = str(error) or repr(error)  # a MemoryError has no text
        if any(sign in text for sign in _TORCH_CANNOT_WRITE):
            return "a shard could not be written whole: the disk is full, or a quota is reached"
        return text
    return ""


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free there"
    except OSError as error:
        return f"{folder}: {error.strerror}"
