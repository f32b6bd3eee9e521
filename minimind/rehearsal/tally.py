"""Counts the work of the device in one rehearsed step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from minimind.rehearsal.live_bytes import moved_bytes, tensors_in

_EXPERT_WEIGHTS = {
    "expert_gemm.up": ("gate_up_weight_ptr",),
    "expert_to_slots.to_slots": ("weight_ptr",),
    "expert_gemm.activation_grad": ("down_weight_ptr",),
    "expert_weight_grad.weight_grad": ("grad_gate_up_weight_ptr", "grad_down_ptr"),
}
"""For each kernel that multiplies by the experts' matrices, its arguments that hold one matrix per
expert."""


class Work(NamedTuple):
    """Describes the work of one launch: its FLOPs, bytes and precision."""

    flops: int
    moved: int
    """The least bytes that the launch reads and writes."""
    is_wide: bool
    """True where the launch computes in 32 bits."""


@dataclass(slots=True)
class Tally:
    launches: Counter[str] = field(default_factory=Counter)
    """Launches of MiniMind's own kernels, by kernel name."""
    operators: Counter[str] = field(default_factory=Counter)
    """PyTorch operators that launch something on the device, by name."""
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The number of times that the host waits for the device, by (kind, place in the code)."""
    collectives: dict[str, list[int]] = field(default_factory=dict)
    """For each kind of collective, [number, bytes of their larger sides]."""
    work: list[Work] = field(default_factory=list)
    kernel_bytes: int = 0
    """The least bytes that MiniMind's own kernels must move."""

    def add_launch(self, kernel: Any, arguments: Mapping[str, Any]) -> None:
        """Counts a launch of `kernel`, one of MiniMind's Triton functions."""
        module, function = kernel.__module__.rsplit(".", 1)[-1], kernel.__name__.strip("_")
        name = f"{module}.{function.removesuffix('_kernel')}"
        tensors = list(tensors_in(dict(arguments)))
        moved = moved_bytes(tensors)
        flops = 0
        for argument in _EXPERT_WEIGHTS.get(name, ()):
            matrices: Tensor = arguments[argument]
            flops += 2 * arguments["order_ptr"].numel() * (matrices.numel() // len(matrices))
        self.launches[name] += 1
        self.kernel_bytes += moved
        self.work.append(Work(flops, moved, tensors[0].dtype.itemsize > 2))

    def add_operator(self, name: str, flops: int, moved: int, is_wide: bool) -> None:
        """Counts a PyTorch operator that runs on the device."""
        self.operators[name] += 1
        self.work.append(Work(flops, moved, is_wide))

    def add_replay(self, captured: Tally) -> None:
        """Counts a replayed CUDA graph: all of its work on the device, and a single operator of the
        host."""
        self.operators["replay"] += 1
        self.work += captured.work
        self.kernel_bytes += captured.kernel_bytes

    def add_collective(self, kind: str, payload: int) -> None:
        found = self.collectives.setdefault(kind, [0, 0])
        found[0] += 1
        found[1] += payload
