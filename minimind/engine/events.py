"""Defines the state of a run, and the functions that are called around its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from minimind.types import StepStats


@dataclass(slots=True)
class RunState:
    """Holds what a checkpoint keeps besides weights and optimizer. Everything else follows from the
    step."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float = math.inf


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Holds the functions that the loop calls around its steps; the defaults do nothing. `record`
    runs on rank 0, the others on every rank."""

    record: Callable[[StepStats, float | None], None] = _nothing
    """(the step's StepStats, the validation loss after it, if any)."""
    save: Callable[[RunState, bool], None] = _nothing
    """(the state of the run, whether its validation loss is the best so far)."""
    sample: Callable[[nn.Module, int], None] = _nothing
    """(the module with whole weights, the steps taken)."""
    update: Callable[[StepStats, float], None] = _nothing
    """(the step's StepStats, its seconds)."""
    say: Callable[..., None] = _nothing
    """(a text, its values): a line for the user."""
