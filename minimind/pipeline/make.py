"""Makes the results of a pipeline's steps, one after the other."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.errors import ConfigError, TrainingError
from minimind.pipeline.plan import PlannedStep, spell_seconds
from minimind.pipeline.process import Child, build_command
from minimind.pipeline.results import Record, Target, find_target, point_link
from minimind.pipeline.step import Checked, Place, Step
from minimind.pipeline.train_step import TrainStep
from minimind.run.folder import RUN_FILE
from minimind.runtime.folder_lock import FolderLock

logger = logging.getLogger("minimind")

_INTERRUPTED = 130
_OTHERS_END_S, _POLL_S = 60.0, 0.5
"""How long to wait for a training that a killed pipeline has left behind, which saves and ends, and
how often to look."""


class Stopped(Exception):
    """Reports that a signal stopped the pipeline in the step that it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Names a step's finished result."""

    step: Step
    folder: Path
    record: Record


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Makes a pipeline's folder and locks it for this process. Raises ConfigError."""
    if (folder / RUN_FILE).exists():
        raise ConfigError(f"--output_dir {folder}: holds a run; name a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be made or written to: {error.strerror}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_all(planned: Sequence[PlannedStep], place: Place, launcher: str) -> list[Made]:
    """Makes all results that are not there, in the order of the steps. Raises Stopped after a
    signal, TrainingError for a step whose command failed, and a MiniMindError."""
    made: list[Made] = []
    child = Child()
    for number, one in enumerate(planned, start=1):
        step = one.step
        results = {earlier.step.name: earlier.folder for earlier in made}
        target = find_target(step, results, place)
        said = f"step {number}/{len(planned)}  {step.name}"
        if target.is_done:
            assert target.record is not None
            logger.info("%s: done already, %s", said, target.folder)
            record = target.record
        else:
            logger.info("%s: %s", said, _why(target))
            record = _make(step, results, target, place, launcher, one.checked, child)
            logger.info("%s: made in %s", said, spell_seconds(record.seconds))
        point_link(target.folder, step.name)
        made.append(Made(step=step, folder=target.folder, record=record))
        if child.interrupted and number < len(planned):
            raise Stopped(f"{step.name!r}, which is finished")
    return made


def _why(target: Target) -> str:
    """Says why and where a result is made, and what stays beside it."""
    if target.record:
        return f"goes on in {target.folder}"
    if target.earlier is None:
        return f"begins in {target.folder}"
    folder, record = target.earlier
    what = "result" if record.is_finished else "unfinished run"
    return f"made again in {target.folder} ({target.changes}); the earlier {what} stays in {folder}"


def _make(
    step: Step,
    results: dict[str, Path],
    target: Target,
    place: Place,
    launcher: str,
    checked: Checked,
    child: Child,
) -> Record:
    """Runs the command of a step, and gives the record of its finished result."""
    folder = target.folder
    trains = isinstance(step, TrainStep)
    record = target.record or Record(step=step.name, inputs=target.inputs)
    if trains:
        _wait_for_others(folder)
        record.close_killed(folder)
    else:
        # What a killed command left is of no use to the next one, which takes minutes at most.
        shutil.rmtree(folder, ignore_errors=True)
    resume = ["--resume"] if trains and (folder / RUN_FILE).exists() else []
    flags = step.flags(results, folder)
    record.command = ["minimind", step.verb, *flags]
    logger.info("$ %s", shlex.join([*record.command, *resume]))
    ranks = place.ranks if trains else 1
    used = launcher if trains else "python"
    command = build_command(step.verb, [*flags, *resume], used, ranks)
    record.predicted = _predicted(checked) or record.predicted
    record.begin()
    record.save(folder)
    began = time.monotonic()
    environment = {"DS_ACCELERATOR": "cpu"} if place.device.kind == "cpu" else {}
    try:
        status = child.run(command, environment)
    except OSError as error:
        raise ConfigError(f"{step.where}: cannot be started: {error.strerror}") from None
    record.attempts[-1]["seconds"] = round(time.monotonic() - began, 1)
    record.is_finished = status == 0 and step.is_complete(folder)
    record.save(folder)
    if record.is_finished:
        return record
    if child.interrupted or status == _INTERRUPTED:
        raise Stopped(repr(step.name))
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    raise TrainingError(
        f"{step.where}: its command ended {how}; what it said is above. The steps before it are "
        "done and stay; after mending the cause, the same command goes on from here"
    )


def _predicted(checked: Checked) -> dict[str, Any]:
    found = checked.rehearsal
    if found is None:
        return {}
    return {
        "device": found.device,
        "peak_bytes": found.peak_bytes,
        "least_seconds": checked.least_seconds,
    }


def _wait_for_others(folder: Path) -> None:
    """Waits for a process that still writes into a run's folder. Raises ConfigError, naming it,
    where it does not end."""
    until, has_said = time.monotonic() + _OTHERS_END_S, False
    while folder.is_dir():
        try:
            FolderLock(folder).release()
            return
        except ConfigError as error:
            if time.monotonic() > until:
                raise
            if not has_said:
                logger.info("waiting: %s", error)
                has_said = True
            time.sleep(_POLL_S)
