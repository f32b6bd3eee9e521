"""Lets a run go on where a launcher starts its ranks again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from minimind.config.json_file import load_json
from minimind.errors import ConfigError
from minimind.run.flags import TrainArguments
from minimind.run.folder import RUN_FILE


def resume_after_restart(arguments: TrainArguments) -> TrainArguments:
    """Adds --resume where `torchrun --max_restarts` has started the same run before: where
    --output_dir holds a run of the same arguments. (torchrun's own count of restarts says nothing
    of those after a change of nodes.) Raises ConfigError without --output_dir, since a restart
    would then begin in another folder."""
    if not int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) or arguments.resume:
        return arguments
    if (folder := arguments.get("output_dir")) is None:
        raise ConfigError(
            "torchrun --max_restarts needs --output_dir: a run that is started again finds what it "
            "has saved by its folder"
        )
    earlier = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        earlier = load_json(Path(folder) / RUN_FILE)["arguments"]
    mine = json.loads(json.dumps(arguments.to_dict()))
    return dataclasses.replace(arguments, resume=earlier == mine)
