"""How long a training step takes at another number of ranks: predicted, not measured.

The compute of the smallest measured count is shared out anew, and the bytes that each ZeRO stage
moves pass over the link at its speed. What a rank holds is minimind/engine/memory_prediction.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.collectives import sent_share
from minimind.config.deepspeed_json import precision


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

    def step_s(self, world_size: int, micro_batches: int, link: Link) -> float:
        """Seconds of a step with `micro_batches` on each of `world_size` ranks."""
        compute = self.compute_s * micro_batches / self.micro_batches
        shards = world_size / self.world_size if self.zero_stage else 1
        return (
            compute
            + self.update_s / shards
            + self.data_wait_s
            + self.communication_s(world_size, micro_batches, link, compute)
        )

    def communication_s(
        self, world_size: int, micro_batches: int, link: Link, compute_s: float
    ) -> float:
        """What of it the step waits for."""
        if world_size == 1:
            return 0.0
        # The loop's sums before and after a step, the norm; on a CPU an interrupt before each
        # micro-batch.
        small = 3 + self.is_cpu * micro_batches
        seconds = {"gradients": 0.0, "weights": small * link.latency_s}
        for what, (kind, payload) in self.payloads(micro_batches).items():
            seconds[what] += payload * sent_share(kind, world_size) / link.bytes_per_s
        if (self.ds_config.get("zero_optimization") or {}).get("overlap_comm"):
            # Gradients leave while the backward pass, two thirds of the compute, goes on.
            seconds["gradients"] = max(0.0, seconds["gradients"] - compute_s * 2 / 3)
        return sum(seconds.values())

    def payloads(self, micro_batches: int) -> dict[str, tuple[str, int]]:
        """Kind and bytes of a step's large collectives, as DeepSpeed 0.19 makes them: stages 0 and
        1 reduce gradients once a step, 2 and 3 with each micro-batch; 1 and 2 gather the updated
        weights, 3 gathers them for each micro-batch and keeps them for its backward pass."""
        size = self.parameters * (4 if precision(dict(self.ds_config)) == "fp32" else 2)
        reduced = size * (micro_batches if self.zero_stage >= 2 else 1)
        kind = "reduce_scatter" if self.zero_stage == 3 else "all_reduce"
        found = {"gradients": (kind, reduced)}
        if self.zero_stage:
            gathered = size * (micro_batches if self.zero_stage == 3 else 1)
            found["weights"] = ("all_gather", gathered)
        return found


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
