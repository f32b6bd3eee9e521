"""How long a training step takes at another number of ranks: predicted, not measured.

The compute of the smallest measured count is shared out anew, and the bytes that each ZeRO stage
moves pass over the link at its speed: which bytes, and what a rank holds, a rehearsal says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minimind.rehearsal.roofline import sent_share

Collectives = Mapping[str, tuple[int, int]]
"""By kind, how many a step has and the bytes of their larger sides."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between ranks."""

    bytes_per_s: float
    """What each rank sends, while all do."""
    latency_s: float
    """Of the smallest collective."""
    origin: str
    """measured, or given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """A step as it was measured at `world_size` ranks, and what it is made of."""

    world_size: int
    micro_batches: int
    """Of each rank in a step."""
    compute_s: float
    """Forward and backward of all of them."""
    update_s: float
    """Optimizer, and what else happens once a step."""
    data_wait_s: float
    parameters: int
    ds_config: Mapping[str, Any]
    is_cpu: bool

    @property
    def zero_stage(self) -> int:
        return int((self.ds_config.get("zero_optimization") or {}).get("stage", 0))

    def step_s(
        self, world_size: int, micro_batches: int, link: Link, collectives: Collectives
    ) -> float:
        """Seconds of a step with `micro_batches` on each of `world_size` ranks."""
        compute = self.compute_s * micro_batches / self.micro_batches
        shards = world_size / self.world_size if self.zero_stage else 1
        return (
            compute
            + self.update_s / shards
            + self.data_wait_s
            + self.communication_s(world_size, link, collectives, compute)
        )

    def communication_s(
        self, world_size: int, link: Link, collectives: Collectives, compute_s: float
    ) -> float:
        """What of it the step waits for."""
        if world_size == 1:
            return 0.0
        gradients = weights = 0.0
        for kind, (count, payload) in collectives.items():
            seconds = payload * sent_share(kind, world_size) / link.bytes_per_s
            if kind in ("all_reduce", "reduce_scatter"):
                gradients += seconds
            else:
                weights += seconds
            weights += count * link.latency_s
        if (self.ds_config.get("zero_optimization") or {}).get("overlap_comm"):
            # Gradients leave while the backward pass, two thirds of the compute, goes on.
            gradients = max(0.0, gradients - compute_s * 2 / 3)
        return gradients + weights


def build_model(measured: Mapping[str, Any], device_kind: str) -> StepModel:
    """From bench.scaling's row of the smallest count."""
    parts = dict(measured["step_parts_s"])
    # Watched steps may take longer than timed ones; the shares are what counts.
    factor = measured["step_s"]["median"] / sum(parts.values())
    return StepModel(
        world_size=measured["world_size"],
        micro_batches=measured["micro_batches"],
        compute_s=factor * (parts["forward"] + parts["backward"]),
        update_s=factor * (parts["engine"] + parts["optimizer"]),
        data_wait_s=factor * parts["data_wait"],
        parameters=measured["parameters"],
        ds_config=measured["resolved_ds_config"],
        is_cpu=device_kind == "cpu",
    )
