"""Finds steps whose loss jumps, so that the run can go back to its last checkpoint."""

from __future__ import annotations

import math
import statistics
from collections import deque

from minimind.errors import TrainingError

_WINDOW, _LEAST = 50, 20
"""A step's loss is compared with at most so many losses before it, and with none where there are
fewer than the second number."""
_LEAST_SPREAD = 0.01
"""The least standard deviation that is assumed, as a share of the mean: without it, a tiny change
in a loss that hardly varies would count as a spike."""
_MOST_RETURNS = 3
"""How often a run goes back at most; more spikes are not due to a few bad rows."""


class LossSpikeError(TrainingError):
    """Reports a step whose loss jumped; the run can go on from its last checkpoint without it."""

    def __init__(self, step: int, text: str) -> None:
        super().__init__(text)
        self.step = step

    @property
    def passed_over(self) -> tuple[int, int]:
        """Gives the steps to leave out: this step and the one before it, whose update may have
        caused the spike."""
        return self.step - 1, self.step


class SpikeWatch:
    """Compares each loss with those of the steps before it."""

    def __init__(self, deviations: float, returns: int) -> None:
        """`deviations` is how many standard deviations above the mean a loss may be (0: any);
        `returns` is how often the run has gone back before."""
        self._deviations, self._returns = deviations, returns
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def check(self, step: int, loss: float, *, has_checkpoint: bool) -> None:
        """Raises LossSpikeError where the loss jumps and there is a checkpoint to go back to, and
        TrainingError where the run has gone back too often."""
        if not self._deviations or not math.isfinite(loss):
            return
        if has_checkpoint and len(self._losses) >= _LEAST:
            mean = statistics.fmean(self._losses)
            spread = max(statistics.pstdev(self._losses), _LEAST_SPREAD * abs(mean))
            if loss > mean + self._deviations * spread:
                text = (
                    f"step {step}: the loss is {loss:.4f}, {(loss - mean) / spread:.1f} standard "
                    f"deviations above the mean {mean:.4f} of the {len(self._losses)} before"
                )
                if self._returns >= _MOST_RETURNS:
                    raise TrainingError(
                        f"{text}. The run has gone back {self._returns} times already: a lower "
                        "--learning_rate, more warmup_steps or other data may help"
                    )
                raise LossSpikeError(step, text)
        self._losses.append(loss)
