"""Opens the states of a checkpoint that was saved by another number of ranks, or under another
ZeRO stage or precision."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from minimind.config.recipe import Recipe, replace_fields
from minimind.engine.checkpoint import UNFINISHED, Checkpoint
from minimind.engine.deepspeed_engine import TAG
from minimind.engine.parameter_groups import parameter_groups, trained_parameters
from minimind.engine.saved_states import SavedStates, read_converted, read_replicated
from minimind.engine.shards import explain_unreadable
from minimind.errors import CheckpointError
from minimind.runtime.ranks import Ranks
from minimind.runtime.together import gather, main_first

_CODE = """
import sys
sys.path[:] = {paths!r}
from deepspeed.checkpoint import ds_to_universal
from minimind.engine.shards import with_second_moments, without_code
with without_code(), with_second_moments():
    ds_to_universal.main(ds_to_universal.parse_arguments())
"""
"""Runs DeepSpeed's converter without its flaw: by itself it would run any code that a shard
contains."""


@contextlib.contextmanager
def open_states(
    checkpoint: Checkpoint, module: nn.Module, recipe: Recipe, ranks: Ranks
) -> Iterator[SavedStates]:
    """Yields a checkpoint's states by the names of `module`'s parameters. All ranks enter and leave
    the block together. Raises CheckpointError where they cannot be read."""
    folder = checkpoint.folder
    if checkpoint.meta["zero_stage"] == 0:
        names = _group_names(module, recipe, checkpoint.meta["recipe"])
        yield read_replicated(folder / TAG / "mp_rank_00_model_states.pt", names)
        return
    converted = folder.parent / f"{UNFINISHED}universal-{folder.name}"

    def convert() -> None:
        shutil.rmtree(converted, ignore_errors=True)
        _convert(folder, converted)

    main_first(ranks, convert)
    try:
        yield read_converted(converted / TAG)
        gather(None)  # all ranks have read the converted states
    finally:
        if ranks.is_main:
            shutil.rmtree(converted, ignore_errors=True)


def _group_names(module: nn.Module, recipe: Recipe, saved: dict[str, Any]) -> list[list[str]]:
    """Gives the names of the parameters in each group of the optimizer that saved its states."""
    names = {parameter: name for name, parameter in trained_parameters(module)}
    groups = parameter_groups(module, replace_fields(recipe, saved, "the checkpoint's recipe"))
    return [[names[parameter] for parameter in group["params"]] for group in groups]


def _convert(folder: Path, output: Path) -> None:
    """Has DeepSpeed convert its shards into one folder per parameter. Raises CheckpointError."""
    paths = [path for path in sys.path if isinstance(path, str)]
    command = [sys.executable, "-c", _CODE.format(paths=paths)]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(output / TAG)]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CheckpointError(explain_unreadable(folder, done.stderr[-2000:]))
