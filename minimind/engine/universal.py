"""Converts DeepSpeed's checkpoints to another number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from minimind.engine.deepspeed_engine import TAG
from minimind.errors import CheckpointError


def convert_to_universal(folder: Path, output: Path) -> None:
    """Converts DeepSpeed's shards so that they load on any number of ranks. Raises
    CheckpointError."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(output / TAG)]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CheckpointError(
            f"{folder}: cannot be converted for another number of ranks: {done.stderr[-2000:]}"
        )
