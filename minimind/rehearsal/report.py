"""Reports what a rehearsal found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minimind.rehearsal.roofline import Roofline

_GIB = 2**30
_ALLOWED = "read < minimind/engine/loop.py"
"""The loop reads the previous step's numbers here; the device finished them long before."""


class Wait(NamedTuple):
    """Records where the host waits for the device: how (`kind`), in which code (`place`), and how
    often."""

    kind: str
    place: str
    count: int

    @property
    def is_allowed(self) -> bool:
        return self.kind == "event.synchronize" and _ALLOWED in self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Holds the work, waits and memory of one rank in one optimizer step, or in one decoding
    step."""

    device: str
    world_size: int
    tokens: int | None
    """Tokens in all ranks' rows of the step; None where the stage generates its own tokens."""
    launches: Mapping[str, int]
    """Launches of MiniMind's own kernels, by kernel name."""
    operators: Mapping[str, int]
    """PyTorch operators that run on the device, by name."""
    collectives: Mapping[str, tuple[int, int]]
    """For each kind of collective, their number and their bytes, each counted by its larger
    side."""
    waits: tuple[Wait, ...]
    flops: int
    kernel_bytes: int
    """The least bytes that MiniMind's own kernels must move."""
    peak: Mapping[str, int]
    """Bytes at the memory peak, by holder (rehearsal/holders.py)."""
    roofline: Roofline | None
    """The lower bound of the step's time; None on a CPU, which has no data sheet."""
    seconds: float
    """The seconds that the rehearsal itself took."""

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
        """Gives the waits that a step must not have: all but the read of the previous step's
        numbers."""
        return tuple(wait for wait in self.waits if not wait.is_allowed)

    @property
    def tokens_per_s(self) -> float | None:
        """Gives the most tokens per second that the roofline allows; None without one."""
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
        """Writes the findings in lines like those of a run's banner."""
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
