"""Reports the findings of a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minimind.rehearsal.roofline import Roofline

_GIB = 2**30
_ALLOWED = "read < minimind/engine/loop.py"
"""The read of the step before's numbers, which the device has long had."""


class Wait(NamedTuple):
    """Records a place where the host waits for the device."""

    kind: str
    place: str
    count: int

    @property
    def is_allowed(self) -> bool:
        return self.kind == "event.synchronize" and _ALLOWED in self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Holds the work, waits and memory of one optimizer step of one rank, or of one step of a
    generation."""

    device: str
    world_size: int
    tokens: int | None
    """The tokens of all ranks' rows; None where a step generates its own."""
    launches: Mapping[str, int]
    """The launches of our own kernels, by name."""
    operators: Mapping[str, int]
    """PyTorch's operators that work on the device, by name."""
    collectives: Mapping[str, tuple[int, int]]
    """For each kind, the number of collectives and the bytes of their larger sides."""
    waits: tuple[Wait, ...]
    flops: int
    kernel_bytes: int
    """The least bytes that our own kernels move."""
    peak: Mapping[str, int]
    """The bytes at the moment of the peak, by holder (rehearsal/holders.py)."""
    roofline: Roofline | None
    """None on a CPU, which has no data sheet here."""
    seconds: float
    """The seconds that the rehearsal took."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())

    @property
    def num_launches(self) -> int:
        return sum(self.launches.values())

    @property
    def num_operators(self) -> int:
        return sum(self.operators.values())

    @property
    def forbidden_waits(self) -> tuple[Wait, ...]:
        """Gives all waits but the one for the numbers of the step before."""
        return tuple(wait for wait in self.waits if not wait.is_allowed)

    @property
    def tokens_per_s(self) -> float | None:
        """Gives the speed at the bound."""
        return self.tokens / self.roofline.step if self.roofline and self.tokens else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rehearsal:
        """Reads what `to_dict` gave, through JSON."""
        roofline = values["roofline"]
        return cls(
            **{
                **values,
                "waits": tuple(Wait(*wait) for wait in values["waits"]),
                "collectives": {k: (c, b) for k, (c, b) in values["collectives"].items()},
                "roofline": Roofline(**roofline) if roofline else None,
            }
        )

    def describe(self) -> str:
        """Describes the rehearsal in lines like those of a run's banner."""
        found = sorted(self.peak.items(), key=lambda part: -part[1])
        parts = ", ".join(f"{name} {held / _GIB:.2f}" for name, held in found if held > _GIB / 200)
        lines = [f"memory     {self.peak_bytes / _GIB:.2f} GiB a rank at the peak: {parts}"]
        if self.roofline is None:
            return lines[0]
        collectives = ", ".join(
            f"{count} {kind} of {payload / 1e6:,.1f} MB in all"
            for kind, (count, payload) in self.collectives.items()
        )
        lines.append(
            f"launches   {self.num_launches:,} of our own and {self.num_operators:,} of PyTorch's "
            f"a step; {collectives or 'no collectives'}"
        )
        lines += [
            f"waits      {wait.count} x {wait.kind}: {wait.place}" for wait in self.forbidden_waits
        ]
        if not self.forbidden_waits:
            lines.append("waits      none but for the numbers of the step before")
        bound = self.roofline
        lines.append(
            f"time       at least {bound.step * 1e3:.1f} ms a step, bound by {bound.bound}: "
            f"products {bound.products * 1e3:.1f}, memory {bound.memory * 1e3:.1f}, links "
            f"{bound.links * 1e3:.1f}, host about {bound.host * 1e3:.1f} ms"
        )
        if self.tokens_per_s:
            lines.append(
                f"speed      at most {self.tokens_per_s:,.0f} tokens/s: a bound by data sheets"
            )
        return "\n".join(lines)
