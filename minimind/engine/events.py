"""Where a run is, and what happens around its steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from minimind.types import StepStats


@dataclass(slots=True)
class RunState:
    """What a checkpoint keeps besides weights and optimizer. All else follows from the step."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float = math.inf


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Holds what the loop calls around its steps; what is not given does nothing. `record` runs on
    rank 0, the others on every rank."""

    record: Callable[[StepStats, float | None], None] = _nothing
    """(what the step did, the validation loss after it where there was one)."""
    save: Callable[[RunState, bool], None] = _nothing
    """(where the run is, whether its validation loss is the best so far)."""
    sample: Callable[[nn.Module, int], None] = _nothing
    """(the module with whole weights, the steps taken)."""
    update: Callable[[StepStats, float], None] = _nothing
    """(what the step did, the seconds it took)."""
    say: Callable[..., None] = _nothing
    """(a text, the values in it): a line for the user."""
