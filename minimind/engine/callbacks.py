"""Defines the state of a run, and the callbacks around its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from minimind.types import StepStats


@dataclass(slots=True)
class RunState:
    """Holds the state that a checkpoint keeps besides weights and optimizer. All other state
    follows from the step."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float = math.inf
    skipped_steps: int = 0
    """How many steps were skipped, since their loss or gradient was not finite."""
    passed_over: tuple[int, ...] = ()
    """The steps that are left out, two for each time that the run went back from a spike."""


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Holds the callbacks that the loop calls around its steps; by default they do nothing.
    `record` is called on rank 0, the others on every rank."""

    record: Callable[[StepStats, float | None], None] = _nothing
    """Takes the step's StepStats, and the validation loss after the step or None."""
    save: Callable[[RunState, bool], None] = _nothing
    """Takes the state of the run, and whether its validation loss is the best so far; may go on
    writing in the background. Raises TrainingError on every rank if any cannot write."""
    confirm: Callable[[], None] = _nothing
    """Waits until the last checkpoint is on disk. Raises TrainingError on every rank if it cannot
    be written."""
    sample: Callable[[nn.Module, int], None] = _nothing
    """Takes the module with complete weights, and the number of steps taken."""
    update: Callable[[StepStats, float], None] = _nothing
    """Takes the step's StepStats, and how many seconds the step took."""
    skip: Callable[[int, float, float, list[str]], None] = _nothing
    """Takes a step that was skipped, its loss, gradient norm, and the documents concerned."""
    say: Callable[..., None] = _nothing
    """Takes a message for the user as a format and its values, as a logger does."""
