"""A step's numbers on their way from the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Numbers:
    """A dataclass of fp64 tensors that travel as one. A field may be such a dataclass itself, or
    None where there is nothing to say."""

    __slots__ = ()

    def flat(self) -> Tensor:
        """Copies all of them into one row, in the order of the fields."""
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors()])

    def over(self, flat_N: Tensor) -> Self:
        """Gives the same fields as views of a row that `flat` gave, or of what became of it."""
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
    """What the routers of a mixture of experts did, over all ranks."""

    aux_loss: Tensor
    """Summed over the count; coefficient included."""
    dropped: Tensor
    """Tokens that no expert took."""
    tokens_LE: Tensor
    """Tokens that each expert took, by layer with experts."""
    grad_norm: Tensor | None = None
    """Of the routers' gradient before clipping; None while the others are summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers(Numbers):
    """What a step, or one update of it, found: over all ranks but for `losses`."""

    count: Tensor
    tokens: Tensor
    stops: Tensor
    """How many ranks are to stop."""
    loss: Tensor
    """Summed over the count."""
    metrics_N: Tensor
    """The stage's metrics, summed over the count."""
    grad_norm: Tensor
    routers: RouterNumbers | None
    """None for a dense model."""
    losses_U: Tensor | None = None
    """That of each of this rank's micro-batches, of all updates in order; None in an update."""

    @classmethod
    def of_update(
        cls, counts_3: Tensor, sums_N: Tensor, grad_norm: Tensor, routers: RouterNumbers | None
    ) -> StepNumbers:
        """Names what was added up as one tensor: the count, the tokens and who is to stop; the loss
        and each metric."""
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
        """Gives the means over the updates of a step, but of `tokens` their sum."""
        found, *others = updates
        if others:
            found = found.over(torch.stack([one.flat() for one in updates]).mean(0))
            found = replace(found, tokens=found.tokens * len(updates))
        losses_U = torch.stack(list(losses)).double() if losses else found.loss.new_zeros(0)
        return replace(found, losses_U=losses_U)

    @property
    def mean_loss(self) -> float:
        """Gives 0 for a step that had nothing to learn from."""
        return float(self.loss) / max(float(self.count), 1.0)

    @property
    def mean_metrics(self) -> list[float]:
        """Gives NaN for a step that had nothing to learn from."""
        count = float(self.count)
        return [value / max(count, 1.0) if count else math.nan for value in self.metrics_N.tolist()]


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was taken and whose numbers nobody waits for yet."""

    step: int
    learning_rate: float
    measured: Mapping[str, float]
    """What the stage measured itself."""
    _numbers: StepNumbers
    """On the host, where they may not have arrived."""
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
        """Waits for the numbers; they are on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers
