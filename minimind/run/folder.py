"""Chooses and creates a run's folder, and writes run.json into it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from minimind.config.json_file import load_json
from minimind.config.spelling import did_you_mean_file
from minimind.errors import CheckpointError, ConfigError
from minimind.run.flags import TrainArguments
from minimind.run.resolve import ResolvedRun
from minimind.runtime.whole_files import write_whole

RUNS = Path("runs")
RUN_FILE = "run.json"
_MAX_NAME_BYTES = 255


def make_folder(run: ResolvedRun) -> Path:
    """Creates --output_dir, or the next free folder in runs/, and writes run.json at once, so that
    a run killed before its first checkpoint can be resumed. A resumed run's run.json is replaced
    only after its checkpoint has proved to belong to it. Raises the ConfigErrors of
    `check_folder`."""
    folder = check_folder(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be made: {error.strerror}; name a folder"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir {folder}: cannot be written to")
    if not run.arguments.resume:
        write_run(folder, run)
    return folder


def check_folder(run: ResolvedRun) -> Path:
    """Gives the folder that `make_folder` will create. Raises ConfigError where it cannot be
    created or written to, or has checkpoints that the user did not ask to resume."""
    folder = _choose_folder(run)
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise ConfigError(f"--output_dir {folder}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir {folder}: cannot be written to; name another folder")
    return folder


def _choose_folder(run: ResolvedRun) -> Path:
    if given := run.arguments.get("output_dir"):
        folder = Path(given)
        if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in folder.parts):
            raise ConfigError(
                f"--output_dir {str(folder)[:60]}…: a name in it is longer than {_MAX_NAME_BYTES} "
                "bytes, the most that file systems take: give a shorter one"
            )
        if not run.arguments.resume and any((folder / "checkpoints").glob("step-*")):
            raise ConfigError(
                f"{folder} already holds a run's checkpoints: --resume goes on with it, another "
                "--output_dir starts a new one"
            )
        return folder
    name = f"{run.stage}-{Path(run.model_name).stem or 'model'}"
    number = 1
    while (RUNS / f"{name}-{number}").exists():
        number += 1
    return RUNS / f"{name}-{number}"


def write_run(folder: Path, run: ResolvedRun) -> None:
    """Writes everything that was resolved to run.json. If the process is killed meanwhile, the
    earlier file stays. Raises ConfigError where it cannot be written."""
    text = json.dumps(run.to_dict(), indent=2, ensure_ascii=False) + "\n"
    try:
        with write_whole(folder / RUN_FILE) as new:
            new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: {RUN_FILE} cannot be written there: {error.strerror}"
        ) from None


def merge_earlier(arguments: TrainArguments) -> TrainArguments:
    """Gives the options of the run to resume, overridden by the new ones. Raises ConfigError where
    there is no such run, CheckpointError where its run.json cannot be read."""
    folder = arguments.get("output_dir")
    if folder is None:
        raise ConfigError("--resume needs --output_dir, the folder of the run to go on with")
    path = Path(folder) / RUN_FILE
    if not path.exists():
        what = "has no run.json" if Path(folder).is_dir() else "is not there"
        raise ConfigError(
            f"--resume --output_dir {folder}: no run to go on with, as the folder {what}"
            f"{did_you_mean_file(Path(folder))}; without --resume a new run starts there"
        )
    try:
        return arguments.merge(load_json(path)["arguments"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
