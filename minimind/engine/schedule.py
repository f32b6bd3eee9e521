"""Computes the learning rate from the optimizer step alone, so that a resumed run needs no state
for it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Computes a learning rate that rises linearly over `warmup_steps` (W) to `learning_rate` (lr),
    then falls until `total_steps` (T) by lr·(m + (1 − m)/2·(1 + cos(π·(t − W)/(T − W)))), where t
    is the step and m is `min_lr_ratio`."""

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1

    def __call__(self, step: int) -> float:
        """Gives the learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        span = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)


@dataclass(frozen=True, slots=True)
class SteadySchedule:
    """Computes a learning rate that rises linearly over `warmup_steps` (W) to `learning_rate` (lr),
    stays there, and falls linearly to lr·`min_lr_ratio` over the last `decay_share` of
    `total_steps` (Hu et al., "MiniCPM", 2024)."""

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    decay_share: float = 0.4

    def __call__(self, step: int) -> float:
        """Gives the learning rate of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = (self.total_steps - step) / max(self.decay_share * self.total_steps, 1)
        m = self.min_lr_ratio
        return self.learning_rate * (m + (1 - m) * min(1.0, max(0.0, left)))


SCHEDULES = {"cosine": CosineSchedule, "wsd": SteadySchedule}
"""The schedules by the recipe's names for them."""
