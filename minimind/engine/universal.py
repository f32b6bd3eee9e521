"""Converts DeepSpeed's checkpoints to another number of ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from minimind.engine.deepspeed_engine import TAG
from minimind.engine.shards import explain_unreadable
from minimind.errors import CheckpointError

_CODE = """
import sys
sys.path[:] = {paths!r}
from deepspeed.checkpoint import ds_to_universal
from minimind.engine.shards import without_code
with without_code():
    ds_to_universal.main(ds_to_universal.parse_arguments())
"""
"""Runs DeepSpeed's converter, which alone would run code that a shard asks for."""


def convert_to_universal(folder: Path, output: Path) -> None:
    """Converts DeepSpeed's shards into a new folder, so that they load on any number of ranks.
    Raises CheckpointError."""
    shutil.rmtree(output, ignore_errors=True)
    paths = [path for path in sys.path if isinstance(path, str)]
    command = [sys.executable, "-c", _CODE.format(paths=paths)]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(output / TAG)]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CheckpointError(explain_unreadable(folder, done.stderr[-2000:]))
