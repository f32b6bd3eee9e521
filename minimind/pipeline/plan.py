"""Plans a pipeline: finds out which steps are done, checks and rehearses the others, and shows all
of it as a table."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.errors import MiniMindError
from minimind.pipeline.recipe_file import Pipeline
from minimind.pipeline.results import find_target
from minimind.pipeline.step import Checked, Place, Results, Step
from minimind.rehearsal.fits import check_memory
from minimind.rehearsal.rehearse import point_of, rehearse_all, why_not
from minimind.rehearsal.rehearsers import close_rehearsers
from minimind.run.run import Run
from minimind.runtime.text_table import format_table
from minimind.stages import STAGES

logger = logging.getLogger("minimind")

_GIB = 2**30
_NOT_REHEARSED = ("data", "val_data", "format", "output_dir", "monitor")
"""The flags that a rehearsal leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """Holds a step, the state of its result, and the findings of the checks."""

    step: Step
    state: str
    """Describes in words how much of its result exists."""
    result: Path | None = None
    """The folder of its finished result; None for a step that is to be made."""
    checked: Checked


def plan_pipeline(pipeline: Pipeline, place: Place) -> list[PlannedStep]:
    """Checks all steps that are not done, and rehearses those that train. Raises the MiniMindError
    of the first that could not work, with its place in the recipe."""
    planned: list[PlannedStep] = []
    with tempfile.TemporaryDirectory(prefix="minimind-pipeline-") as temporary:
        results: dict[str, Path] = {}
        for step in pipeline.steps:
            with _located(step, Path(temporary)):
                one = _plan_step(step, results, place, Path(temporary, step.name))
            results[step.name] = one.result or Path(temporary, step.name)
            planned.append(one)
        _rehearse(planned, Path(temporary))
    return planned


def _plan_step(step: Step, results: Results, place: Place, stand_in: Path) -> PlannedStep:
    state = "to make"
    if place.is_here and all(results[name].parent == place.folder for name in step.sources):
        target = find_target(step, results, place)
        if target.is_done:
            done = f"done: {target.folder.name}"
            return PlannedStep(step=step, state=done, result=target.folder, checked=Checked())
        state = target.state
    checked = step.check(results, place)
    step.write_stand_in(stand_in, checked)
    return PlannedStep(step=step, state=state, checked=checked)


def _rehearse(planned: Sequence[PlannedStep], temporary: Path) -> None:
    """Adds rehearsals to the steps that train. Raises ConfigError for a step that does not fit into
    the memory."""
    runs = {one.step.name: one.checked.run for one in planned if one.checked.run}
    reasons = {name: why_not(run.resolved) or "" for name, run in runs.items()}
    runs = {name: _without_data(run) for name, run in runs.items()}
    points = {
        name: point_of(run, run.resolved.arguments)
        for name, run in runs.items()
        if not reasons[name]
    }
    found: dict[str, Any] = {}
    try:
        found = dict(zip(points, rehearse_all(list(points.values())), strict=True))
    except RuntimeError as error:
        logger.warning("no memory or time is predicted: %s", str(error).strip().splitlines()[-1])
        reasons |= dict.fromkeys(points, "the rehearsal broke")
    finally:
        close_rehearsers()
    for one in planned:
        one.checked.not_rehearsed = reasons.get(one.step.name, "")
        if rehearsal := found.get(one.step.name):
            one.checked.rehearsal = rehearsal
            with _located(one.step, temporary):
                check_memory(runs[one.step.name], rehearsal)


def _without_data(run: Run) -> Run:
    """Gives the run for a rehearsal: what a step holds follows from its shape, so the sample data
    serve, and the user's need not be tokenised."""
    arguments = run.resolved.arguments
    kept = {name: value for name, value in arguments.run.items() if name not in _NOT_REHEARSED}
    resolved = dataclasses.replace(run.resolved, arguments=dataclasses.replace(arguments, run=kept))
    return Run(resolved, run.tokenizer, run.ranks)


@contextlib.contextmanager
def _located(step: Step, temporary: Path) -> Iterator[None]:
    """Adds a step's place in the recipe to errors raised inside the block, and names results that
    do not exist yet by their steps instead of their stand-ins' folders."""
    try:
        yield
    except MiniMindError as error:
        said = str(error).replace(f"{temporary}/", "the coming result of step ")
        raise type(error)(f"{step.where}: {said}") from None


def describe_plan(pipeline: Pipeline, place: Place, planned: Sequence[PlannedStep]) -> str:
    """Writes what will be done, as a table with a row for each step."""
    lines = [f"recipe     {pipeline.path}: {pipeline.description}".rstrip(": ")]
    sized = f" (the recipe is sized for {pipeline.sized_for})" if pipeline.sized_for else ""
    lines.append(f"device     {place}{sized}")
    lines.append(f"folder     {place.folder}")
    lines += ["", format_table([_row(one) for one in planned]), ""]
    bounds = [one.checked.least_seconds for one in planned if one.checked.run]
    if known := [bound for bound in bounds if bound is not None]:
        lines.append(
            f"time       at least {spell_seconds(sum(known))} for {len(known)} of {len(bounds)} "
            "training steps, by the data sheet; evaluation and reading the data come on top"
        )
    elif bounds:
        lines.append(
            "time       no estimate: a CPU has no data sheet, and only measuring tells its speed"
            if place.device.kind == "cpu"
            else "time       no estimate: the steps could not be rehearsed here"
        )
    for reason in dict.fromkeys(one.checked.not_rehearsed for one in planned):
        if reason:
            lines.append(f"rehearsed  not: {reason}")
    return "\n".join(lines)


def _row(one: PlannedStep) -> dict[str, str]:
    checked, run = one.checked, one.checked.run
    row = {"step": one.step.name, "does": one.step.title, "takes": ", ".join(one.step.sources)}
    row |= {"state": one.state, "a step": "", "steps": "", "memory": "", "time": ""}
    if run is None:
        return row
    resolved = run.resolved
    packed = STAGES[resolved.stage].data_format.packed
    rows = f"x {resolved.seq_len} tokens" if packed else "prompts"
    accumulation = resolved.ds_config["gradient_accumulation_steps"]
    row["a step"] = (
        f"{resolved.train_batch_size} {rows} = "
        f"{resolved.micro_batch_size} x {accumulation} x {resolved.world_size}"
    )
    row["does"] = f"{one.step.title}, {resolved.config.num_parameters / 1e6:.1f}M"
    row["steps"] = "not known"
    if checked.num_steps is not None:
        row["steps"] = f"{'' if checked.is_exact else 'about '}{checked.num_steps:,}"
    row["memory"] = row["time"] = "no estimate"
    if checked.rehearsal:
        there = resolved.device.memory_bytes
        of = f" of {there / _GIB:.1f}" if there else ""
        row["memory"] = f"{checked.rehearsal.peak_bytes / _GIB:.2f}{of} GiB"
    if (bound := checked.least_seconds) is not None:
        row["time"] = f"at least {spell_seconds(bound)}"
    return row


def spell_seconds(seconds: float) -> str:
    """Writes a duration in its two largest units, such as "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
