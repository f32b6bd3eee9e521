"""Carries a step's numbers from the device to the host."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Numbers:
    """Is the base of dataclasses whose fields are fp64 tensors, copied to the host as one. A field
    may also be such a dataclass, or None."""

    __slots__ = ()

    def flat(self) -> Tensor:
        """Joins all tensors in one row [N], in the order of the fields."""
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors()])

    def over(self, flat_N: Tensor) -> Self:
        """Gives the same fields as views of `flat_N`, which is laid out as `flat` does it."""
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
    """Holds sums over all routers of a mixture of experts, over all ranks."""

    aux_loss: Tensor
    """The sum of auxiliary loss (with its coefficient) times count."""
    dropped: Tensor
    """The number of tokens that no expert took."""
    tokens_LE: Tensor
    """The number of tokens that each expert took, by layer that has experts."""
    grad_norm: Tensor | None = None
    """The norm of the routers' gradient before clipping; None while the other fields are being
    summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers(Numbers):
    """Holds the numbers of a step, or of one update in it, summed over all ranks except
    `losses_U`."""

    count: Tensor
    tokens: Tensor
    stops: Tensor
    """The number of ranks that are to stop."""
    loss: Tensor
    """The loss, summed over the count."""
    metrics_N: Tensor
    """The stage's metrics, each summed over the count."""
    grad_norm: Tensor
    routers: RouterNumbers | None
    """The routers' numbers; None for a dense model."""
    losses_U: Tensor | None = None
    """The losses of this rank's micro-batches in all updates of the step, in order; None for a
    single update."""

    @classmethod
    def of_update(
        cls, counts_3: Tensor, sums_N: Tensor, grad_norm: Tensor, routers: RouterNumbers | None
    ) -> StepNumbers:
        """Names the entries of the summed tensors: `counts_3` is (count, tokens, ranks that are to
        stop), `sums_N` the loss and each metric."""
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
        """Combines the updates of a step: it sums `tokens` and averages all other numbers. `losses`
        are those of all micro-batches."""
        found, *others = updates
        if others:
            found = found.over(torch.stack([one.flat() for one in updates]).mean(0))
            found = replace(found, tokens=found.tokens * len(updates))
        losses_U = torch.stack(list(losses)).double() if losses else found.loss.new_zeros(0)
        return replace(found, losses_U=losses_U)

    @property
    def mean_loss(self) -> float:
        """Gives the loss divided by the count; NaN for a step that had nothing to learn from."""
        count = float(self.count)
        return float(self.loss) / max(count, 1.0) if count else math.nan

    @property
    def any_loss(self) -> float:
        """Gives `mean_loss`, or the sum of the losses where the count is 0. The result is not
        finite if any loss in the step is not finite."""
        return self.mean_loss if self.count else float(self.loss)

    @property
    def mean_metrics(self) -> list[float]:
        """Gives each metric divided by the count; NaN for a step that had nothing to learn from."""
        count = float(self.count)
        return [value / max(count, 1.0) if count else math.nan for value in self.metrics_N.tolist()]


@dataclass(frozen=True, slots=True)
class Pending:
    """Holds a step that was taken and whose numbers may not have arrived on the host yet."""

    step: int
    learning_rate: float
    measured: Mapping[str, float]
    """The numbers that the stage itself measured."""
    _numbers: StepNumbers
    """The numbers in host memory, valid once `_arrived` has happened."""
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, step: int, learning_rate: float, measured: Mapping[str, float], numbers: StepNumbers
    ) -> Pending:
        """Starts the copy of the numbers to the host, as one tensor."""
        flat_N, arrived = numbers.flat(), None
        if flat_N.device.type == "cuda":
            flat_N = flat_N.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(step, learning_rate, measured, numbers.over(flat_N), arrived)

    def read(self) -> StepNumbers:
        """Waits for the numbers and gives them, in host memory."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers
