"""What a rehearsal found, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minimind.rehearsal.roofline import Roofline

_GIB = 2**30
_ALLOWED = "read < minimind/engine/loop.py"
"""The numbers of the step before, which the device has long had."""


class Wait(NamedTuple):
    """A place where the host waits for the device."""

    kind: str
    place: str
    count: int

    @property
    def is_allowed(self) -> bool:
        return self.kind == "event.synchronize" and _ALLOWED in self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """One optimizer step of one rank, or one step of a generation, as it was asked of a device."""

    device: str
    world_size: int
    tokens: int | None
    """Of all ranks' rows; None where a step generates its own."""
    launches: Mapping[str, int]
    """Of our own kernels, by name."""
    operators: Mapping[str, int]
    """Of PyTorch's that work on the device, by name."""
    collectives: Mapping[str, tuple[int, int]]
    """By kind, how many and the bytes of their larger sides."""
    waits: tuple[Wait, ...]
    flops: int
    kernel_bytes: int
    """That our own kernels move at least."""
    peak: Mapping[str, int]
    """Bytes at the moment when they are most, by what holds them (rehearsal/holders.py)."""
    roofline: Roofline | None
    """None on a CPU, which has no data sheet here."""
    seconds: float
    """That the rehearsal took."""

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
        """Gives what the bound allows."""
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
        """Says it in lines like those of a run's banner."""
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
