"""A step's numbers on their way from the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was taken and whose numbers nobody waits for yet."""

    step: int
    learning_rate: float
    measured: Mapping[str, float]
    """What the stage measured itself."""
    numbers: Tensor
    """On the host: count, tokens, stop; loss and metric sums; grad norm; the routers' numbers;
    this rank's losses."""
    arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, step: int, learning_rate: float, measured: Mapping[str, float], numbers: Tensor
    ) -> Pending:
        """Sends the numbers off to the host."""
        arrived = None
        if numbers.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(step, learning_rate, measured, numbers, arrived)

    def read(self) -> list[float]:
        """Waits for the numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()
