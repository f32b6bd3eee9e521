"""Bounds the time of a rehearsed step from below: by products, bytes, links or the host.

This is a bound and not a measurement: every launch runs at the data sheet's rates, and the host's
costs are stated here. A value that nobody has timed stays an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minimind.rehearsal.tally import Work
from minimind.runtime.gpus import Gpu

OPERATOR_S, LAUNCH_S, COLLECTIVE_S = 6e-6, 20e-6, 20e-6
"""Seconds of the host for one operator of PyTorch's, one launch of ours through Triton and one
collective: estimates for a server's CPU, none of them measured beside a GPU."""
_BACKWARD_SHARE = 2 / 3
"""Of the device's time, during which gradients may travel."""
_WIDE = 2
"""How much slower products of 32 bits are, in TF32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Seconds of a step."""

    products: float
    """Of launches that their multiplications bound."""
    memory: float
    """Of launches that the bytes they move bound."""
    links: float
    """Of collectives between the ranks, as far as the step waits for them."""
    host: float

    @property
    def device(self) -> float:
        return self.products + self.memory

    @property
    def step(self) -> float:
        """Gives the bound of a step: the host launches ahead, so the slower of host and device
        decides."""
        return max(self.device + self.links, self.host)

    @property
    def bound(self) -> str:
        """Names what decides."""
        if self.host > self.device + self.links:
            return "host"
        return max(("products", "memory", "links"), key=lambda part: getattr(self, part))


def estimate(
    work: Iterable[Work],
    num_launches: int,
    num_operators: int,
    collectives: Mapping[str, Sequence[int]],
    gpu: Gpu,
    world_size: int,
    *,
    overlaps: bool,
) -> Roofline:
    """Adds up a step. `collectives`: by kind, how many and their bytes; `overlaps`: whether
    gradients travel during the backward."""
    products = memory = 0.0
    for flops, moved, is_wide in work:
        multiplying = flops * (_WIDE if is_wide else 1) / gpu.flops
        moving = moved / gpu.bytes_per_s
        if multiplying > moving:
            products += multiplying
        else:
            memory += moving
    links, num_collectives = 0.0, 0
    for kind, (count, payload) in collectives.items():
        num_collectives += count
        if world_size > 1:
            travelled = payload * sent_share(kind, world_size)
            links += travelled / gpu.link_bytes_per_s + count * COLLECTIVE_S
    if overlaps:
        links = max(0.0, links - _BACKWARD_SHARE * (products + memory))
    host = OPERATOR_S * num_operators + LAUNCH_S * num_launches + COLLECTIVE_S * num_collectives
    return Roofline(products=products, memory=memory, links=links, host=host)


def sent_share(kind: str, world_size: int) -> float:
    """Bytes that a rank sends for each byte of payload, by the ring algorithms (Patarasuk & Yuan
    2009); a reduction to or from one rank passes everything through each."""
    around_once = (world_size - 1) / world_size
    return 2 * around_once if kind == "all_reduce" else around_once
