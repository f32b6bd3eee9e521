"""Decides whether a run goes on after a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from typing import Any

from minimind.config.recipe import Recipe
from minimind.engine.callbacks import Callbacks, RunState
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.pending import StepNumbers
from minimind.engine.stage import Loader
from minimind.errors import TrainingError

_ROWS_NAMED = 20
"""The most documents that a message names."""


class FaultySteps:
    """Ends a run at a step whose loss or gradient is not finite, or counts the step as skipped
    where the recipe allows that. All ranks call its methods, at the same points."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        loader: Loader[Any],
        recipe: Recipe,
        callbacks: Callbacks,
        state: RunState,
    ) -> None:
        self._engine, self._loader, self._recipe = engine, loader, recipe
        self._callbacks, self._state = callbacks, state

    def check(self, step: int, found: StepNumbers, num_micro_batches: int) -> None:
        """Raises TrainingError where the loss or the gradient of step `step` is not finite and the
        recipe's limit of skipped steps is reached. `num_micro_batches` is that of the loader, on
        each rank."""
        loss, grad_norm = found.any_loss, float(found.grad_norm)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        if math.isfinite(loss) and self._engine.precision == "fp16":  # loss scaling skips it
            said = "step %d: skipped, its gradient overflowed; the loss scale is now %g"
            self._callbacks.say(said, step, self._engine.loss_scale)
            return
        rows = self._find_rows(step, found, num_micro_batches)
        named = ", ".join(rows[:_ROWS_NAMED])
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        what = f"step {step}: the loss is {loss} and the gradient norm {grad_norm}"
        if self._state.skipped_steps < self._recipe.skip_steps:
            self._state.skipped_steps += 1
            self._callbacks.skip(step, loss, grad_norm, rows)
            said = "%s; skipped, the weights stay as they were (%d of %d). Rows: %s%s"
            limit = self._recipe.skip_steps
            self._callbacks.say(said, what, self._state.skipped_steps, limit, named, more)
            return
        skipped = ""
        if self._recipe.skip_steps:
            skipped = (
                f" {self._state.skipped_steps} steps were skipped before, as skip_steps allows."
            )
        raise TrainingError(
            f"{what}. Rows of the micro-batches concerned: {named}{more}.{skipped} The last "
            "checkpoint is as it was. A lower --learning_rate, more warmup_steps or other data may "
            "help"
        )

    def _find_rows(self, step: int, found: StepNumbers, num_micro_batches: int) -> list[str]:
        """Names the documents of the micro-batches, on all ranks, whose loss is not finite."""
        assert found.losses_U is not None
        losses = found.losses_U.tolist()
        bad = [micro for micro, value in enumerate(losses) if not math.isfinite(value)]
        if math.isfinite(found.any_loss):  # the gradient alone: it may come from any of them
            bad = list(range(len(losses)))
        rows: list[str] = []
        for micro in sorted({micro % num_micro_batches for micro in bad}):
            rows += self._loader.describe(step - 1, micro)
        return sorted(set(self._engine.gather_texts(rows)))
