"""Chooses and creates a run's folder, and writes run.json into it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

from minimind.config.json_file import load_json
from minimind.config.spelling import did_you_mean_file
from minimind.engine.checkpoint import list_steps
from minimind.errors import CheckpointError, ConfigError
from minimind.run.arguments import TrainArguments
from minimind.run.resolve import ResolvedRun
from minimind.runtime.folder_lock import FolderLock
from minimind.runtime.ranks import Ranks
from minimind.runtime.together import broadcast, main_first
from minimind.runtime.whole_files import write_whole

RUNS = Path("runs")
RUN_FILE = "run.json"
_MAX_NAME_BYTES = 255
_NAMED = 5
"""The most files that an error names."""


def open_folder(run: ResolvedRun) -> tuple[Path, FolderLock]:
    """Creates --output_dir, or the next free folder in runs/, locks it for this process, and writes
    run.json at once, so that a run killed before its first checkpoint can be resumed. A resumed
    run's run.json is replaced later, once its checkpoint has been checked to belong to the run.
    Raises ConfigError where `check_folder` does, and where another process holds the folder's lock.
    """
    folder = check_folder(run)
    try:
        if run.arguments.get("output_dir"):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _make_numbered(run)
        lock = FolderLock(folder)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be made or written to: {error.strerror}; name another "
            "folder"
        ) from None
    if not run.arguments.resume:
        write_run(folder, run)
    return folder, lock


def open_together(run: ResolvedRun, ranks: Ranks, stack: contextlib.ExitStack) -> Path:
    """Opens the run's folder on rank 0, which holds its lock until the stack unwinds. All ranks
    call it."""
    opened = main_first(ranks, lambda: open_folder(run))
    if opened:
        stack.callback(opened[1].release)
    return broadcast(opened[0] if opened else None)


def check_folder(run: ResolvedRun) -> Path:
    """Gives the folder that `open_folder` will create. Raises ConfigError where it cannot be
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
        if not run.arguments.resume and list_steps(folder / "checkpoints"):
            raise ConfigError(
                f"{folder} already holds a run's checkpoints: --resume goes on with it, another "
                "--output_dir starts a new one"
            )
        return folder
    return next(folder for folder in _numbered(run) if not folder.exists())


def _numbered(run: ResolvedRun) -> Iterator[Path]:
    name = f"{run.stage}-{Path(run.model_name).stem or 'model'}"
    return (RUNS / f"{name}-{number}" for number in itertools.count(1))


def _make_numbered(run: ResolvedRun) -> Path:
    """Makes the first numbered folder that is not there; another run may make it just before."""
    for folder in _numbered(run):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("the numbers have no end")


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
        raise ConfigError(
            f"--resume --output_dir {folder}: no run to go on with, as the folder "
            f"{_describe_without_run(Path(folder))}; without --resume a new run starts there"
        )
    try:
        return arguments.merge(load_json(path)["arguments"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


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


def _describe_without_run(folder: Path) -> str:
    """Describes what is in a folder that should hold a run."""
    if not folder.is_dir():
        return f"is not there{did_you_mean_file(folder)}"
    names = sorted(path.name for path in folder.iterdir())
    runs = [name for name in names if (folder / name / RUN_FILE).exists()]
    if runs:
        return f"has no {RUN_FILE}, but these in it have: {_some(runs)}"
    return f"has no {RUN_FILE}" + (f" (it holds {_some(names)})" if names else " and is empty")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
