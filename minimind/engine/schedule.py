"""Computes the learning rate from the optimizer step alone, so that a resumed run needs no state
for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minimind.config.recipe import SCHEDULE_NAMES


@dataclass(frozen=True, slots=True)
class Schedule:
    """Computes a learning rate that rises linearly over `warmup_steps` (W) to `learning_rate` (lr),
    then falls to lr·`min_lr_ratio` by lr·(m + (1 − m)·share(t)), where t is the step and m is
    `min_lr_ratio`."""

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1

    def __call__(self, step: int) -> float:
        """Gives the learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        m = self.min_lr_ratio
        return self.learning_rate * (m + (1.0 - m) * self.share(step))

    def share(self, step: int) -> float:
        """Gives the share of the fall that is still to come after the warm-up, from 1 to 0."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CosineSchedule(Schedule):
    """Falls by share(t) = (1 + cos(π·(t − W)/(T − W)))/2, where T is `total_steps`."""

    def share(self, step: int) -> float:
        span = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class SteadySchedule(Schedule):
    """Stays at the peak and falls linearly over the last `decay_share` of the steps (Hu et al.,
    "MiniCPM", 2024)."""

    decay_share: float = 0.4

    def share(self, step: int) -> float:
        left = (self.total_steps - step) / max(self.decay_share * self.total_steps, 1)
        return min(1.0, max(0.0, left))


_KINDS: tuple[type[Schedule], ...] = (CosineSchedule, SteadySchedule)
SCHEDULES = dict[str, type[Schedule]](zip(SCHEDULE_NAMES, _KINDS, strict=True))
"""The schedules by the recipe's names for them."""
