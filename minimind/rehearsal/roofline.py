"""Computes a lower bound of a rehearsed step's time, set by matrix products, memory, links or the
host.

The bound is no measurement: every launch is taken to run at the data sheet's rates, and the host's
costs are the estimates below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minimind.rehearsal.tally import Work
from minimind.runtime.gpus import Gpu

OPERATOR_S, LAUNCH_S, COLLECTIVE_S = 6e-6, 20e-6, 20e-6
"""Seconds of host time for one PyTorch operator, one Triton launch and one collective: estimates
for a server CPU, none of them measured beside a GPU."""
_BACKWARD_SHARE = 2 / 3
"""The share of the device's time in which gradients can be sent while it computes: the
backward's."""
_WIDE = 2
"""The factor by which 32-bit products (TF32) are slower than 16-bit ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Holds the parts of a step's time bound, in seconds."""

    products: float
    """Time of the launches whose multiplications take longer than their memory traffic."""
    memory: float
    """Time of the launches whose memory traffic takes longer than their multiplications."""
    links: float
    """Time of the collectives between ranks, as far as the step waits for them."""
    host: float

    @property
    def device(self) -> float:
        return self.products + self.memory

    @property
    def step(self) -> float:
        """Gives the bound of the whole step: the slower of device and host, since the host launches
        ahead."""
        return max(self.device + self.links, self.host)

    @property
    def bound(self) -> str:
        """Names the part that sets the bound: host, products, memory or links."""
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
    """Adds up the bound of one step. `collectives` holds the number and the bytes of each kind;
    `overlaps` says that gradients are sent during the backward."""
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
    """Gives the bytes that one rank sends per byte of payload with ring algorithms (Patarasuk &
    Yuan 2009). A reduction to one rank, or a broadcast, passes the payload through each rank as
    well."""
    around_once = (world_size - 1) / world_size
    return 2 * around_once if kind == "all_reduce" else around_once
