"""Saves a loop's checkpoints, and goes on without those that cannot be written."""

from __future__ import annotations

from minimind.engine.callbacks import Callbacks, RunState
from minimind.errors import TrainingError


class Saving:
    """Saves the state of a run by its callbacks. All ranks call its methods, at the same points."""

    def __init__(self, callbacks: Callbacks, state: RunState) -> None:
        self._callbacks, self._state = callbacks, state
        self._best_saved = state.best_val_loss
        """The best validation loss whose weights are in a checkpoint."""
        self.has_checkpoint = state.step > 0

    def save(self, is_best: bool, or_go_on: bool) -> bool:
        """Saves a checkpoint. With `or_go_on` the checkpoint is written in the background. If it
        cannot be written, that is reported and the result is False: a full disk may have room for
        the next checkpoint. Without `or_go_on` a checkpoint that cannot be written raises
        TrainingError."""
        try:
            self._callbacks.save(self._state, is_best)
            if not or_go_on:
                self._callbacks.confirm()
        except TrainingError as error:
            if not or_go_on:
                raise
            self._go_on_after(error)
            return False
        self.has_checkpoint = True
        return True

    def confirm(self) -> bool:
        """Waits until the checkpoint that is written in the background is on disk. Reports one that
        could not be written, and gives False."""
        try:
            self._callbacks.confirm()
        except TrainingError as error:
            self._go_on_after(error)
            return False
        self._best_saved = self._state.best_val_loss
        return True

    def _go_on_after(self, error: TrainingError) -> None:
        self._callbacks.say("%s; training goes on", error)
        # Weights that were not saved are not the best: the next that beat the saved ones are.
        self._state.best_val_loss = self._best_saved
