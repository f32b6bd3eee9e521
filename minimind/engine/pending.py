"""A step's numbers on their way from the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class UpdateNumbers:
    """What one update of a step found, on the device: fp64, and over all ranks but for `losses`."""

    counts: Tensor
    """[3]: the count, the tokens, and how many ranks are to stop."""
    sums: Tensor
    """The loss and each metric, summed over the count."""
    grad_norm: Tensor
    """[1]."""
    routed: Tensor
    """What RouterWatch.take gave."""
    losses: list[Tensor]
    """One scalar for each of this rank's micro-batches."""

    @classmethod
    def of_nothing(cls, counts: Tensor, num_metrics: int, num_routed: int) -> UpdateNumbers:
        """Gives what a step found that had nothing to learn from."""
        zero = counts.new_zeros(1)
        return cls(counts, zero.expand(1 + num_metrics), zero, zero.expand(num_routed), [zero[0]])


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """The same of a whole step, on the host: means over its updates, but `tokens` is their sum."""

    count: float
    tokens: float
    stops: bool
    """Whether a rank is to stop."""
    sums: list[float]
    grad_norm: float
    routed: list[float]
    losses: list[float]
    """Those of all updates, in order."""

    @property
    def means(self) -> list[float]:
        """Gives the mean loss, and that of each metric; of nothing they are 0 and NaN."""
        loss, *metrics = (value / max(self.count, 1.0) for value in self.sums)
        return [loss, *(value if self.count else math.nan for value in metrics)]


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was taken and whose numbers nobody waits for yet."""

    step: int
    learning_rate: float
    measured: Mapping[str, float]
    """What the stage measured itself."""
    numbers: Tensor
    """On the host: the fields of StepNumbers, in order."""
    num_sums: int
    num_losses: int
    arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls,
        step: int,
        learning_rate: float,
        measured: Mapping[str, float],
        updates: Sequence[UpdateNumbers],
    ) -> Pending:
        """Sends the numbers off to the host."""
        first = updates[0]
        parts = [first.counts, first.sums, first.grad_norm, first.routed]
        if len(updates) > 1:
            rows = [torch.cat([u.counts, u.sums, u.grad_norm, u.routed]) for u in updates]
            parts = [torch.stack(rows).mean(0)]
            parts[0][1] *= len(rows)
        losses = [loss for one in updates for loss in one.losses]
        numbers = torch.cat([*parts, torch.stack(losses).double()])
        arrived = None
        if numbers.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        num_sums = len(updates[0].sums)
        return cls(step, learning_rate, measured, numbers, num_sums, len(losses), arrived)

    def read(self) -> StepNumbers:
        """Waits for the numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        count, tokens, stop, *rest = self.numbers.tolist()
        sums, (grad_norm, *rest) = rest[: self.num_sums], rest[self.num_sums :]
        routed, losses = rest[: -self.num_losses], rest[-self.num_losses :]
        return StepNumbers(count, tokens, stop > 0, sums, grad_norm, routed, losses)
