"""Carries a step's numbers from the device to the host."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Numbers:
    """Base of dataclasses of fp64 tensors that are copied as one. A field may be such a dataclass
    itself, or None where it has no value."""

    __slots__ = ()

    def flat(self) -> Tensor:
        """Copies all of them into one row, in the order of the fields."""
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors()])

    def over(self, flat_N: Tensor) -> Self:
        """Gives the same fields as views of a row with the layout of `flat`."""
        sizes = [tensor.numel() for tensor in self._tensors()]
        return self._filled(iter(flat_N.split(sizes)))

    def _tensors(self) -> Iterator[Tensor]:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Numbers):
                yield from value._tensors()
            elif value is not None:
                yield value

    def _filled(self, parts: Iterator[Tensor]) -> Self:
        found: dict[str, Numbers | Tensor] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Numbers):
                found[field.name] = value._filled(parts)
            elif value is not None:
                found[field.name] = next(parts).view(value.shape)
        return replace(self, **found)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterNumbers(Numbers):
    """Holds the sums over the routers of a mixture of experts, over all ranks."""

    aux_loss: Tensor
    """The auxiliary loss summed over the count; coefficient included."""
    dropped: Tensor
    """The number of tokens that no expert took."""
    tokens_LE: Tensor
    """The number of tokens that each expert took, by layer with experts."""
    grad_norm: Tensor | None = None
    """The norm of the routers' gradient before clipping; None while the others are summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers(Numbers):
    """Holds the numbers of a step, or one update of it, over all ranks except `losses`."""

    count: Tensor
    tokens: Tensor
    stops: Tensor
    """The number of ranks that are to stop."""
    loss: Tensor
    """The loss summed over the count."""
    metrics_N: Tensor
    """The stage's metrics, summed over the count."""
    grad_norm: Tensor
    routers: RouterNumbers | None
    """None for a dense model."""
    losses_U: Tensor | None = None
    """The losses of this rank's micro-batches, of all updates in order; None in an update."""

    @classmethod
    def of_update(
        cls, counts_3: Tensor, sums_N: Tensor, grad_norm: Tensor, routers: RouterNumbers | None
    ) -> StepNumbers:
        """Names the parts of the summed tensors: the count, the tokens and the ranks to stop; the
        loss and each metric."""
        count, tokens, stops = counts_3
        return cls(
            count=count,
            tokens=tokens,
            stops=stops,
            loss=sums_N[0],
            metrics_N=sums_N[1:],
            grad_norm=grad_norm,
            routers=routers,
        )

    @classmethod
    def of_step(cls, updates: Sequence[StepNumbers], losses: Sequence[Tensor]) -> StepNumbers:
        """Gives the means over the updates of a step, but the sum of `tokens`."""
        found, *others = updates
        if others:
            found = found.over(torch.stack([one.flat() for one in updates]).mean(0))
            found = replace(found, tokens=found.tokens * len(updates))
        losses_U = torch.stack(list(losses)).double() if losses else found.loss.new_zeros(0)
        return replace(found, losses_U=losses_U)

    @property
    def mean_loss(self) -> float:
        """Gives the loss per count; 0 for a step that had nothing to learn from."""
        return float(self.loss) / max(float(self.count), 1.0)

    @property
    def mean_metrics(self) -> list[float]:
        """Gives the metrics per count; NaN for a step that had nothing to learn from."""
        count = float(self.count)
        return [value / max(count, 1.0) if count else math.nan for value in self.metrics_N.tolist()]


@dataclass(frozen=True, slots=True)
class Pending:
    """Holds a step that was taken and whose numbers may still be on their way."""

    step: int
    learning_rate: float
    measured: Mapping[str, float]
    """The numbers that the stage measured itself."""
    _numbers: StepNumbers
    """The numbers on the host, where they may not have arrived."""
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, step: int, learning_rate: float, measured: Mapping[str, float], numbers: StepNumbers
    ) -> Pending:
        """Sends the numbers off to the host, in one copy."""
        flat_N, arrived = numbers.flat(), None
        if flat_N.device.type == "cuda":
            flat_N = flat_N.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(step, learning_rate, measured, numbers.over(flat_N), arrived)

    def read(self) -> StepNumbers:
        """Waits for the numbers and gives them, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers
