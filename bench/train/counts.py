"""Counts the operators and launches of one training step, and shows where its time goes, kernel by
kernel."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from minimind_kernels.form import Form
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_READS = ("_local_scalar_dense", "nonzero")
"""Operators that hand the host a value, for which it waits."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtModuleLaunchKernel")
_LISTED = 40
"""The number of kernels or operators that are listed, the longest first; the others are added up.
"""


def count_step(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Counts the operators and launches of one step: runs `step` once, or twice where there is a
    GPU.

    `dispatched_operators` reach PyTorch's dispatcher; on a CPU a body of our kernels, which may be
    generated code, counts as one. `sync_operators` are those that hand the host a value
    of the device, by name; copies and calls that wait are counted by the rehearsal
    (bench/train/step_counts.py), with their places. `cuda_launches` comes from the profiler; None
    without a GPU.
    """
    on_gpu = device.type == "cuda"
    operators = _OperatorCounter(device)
    with contextlib.nullcontext() if on_gpu else _bodies_as_one(operators), operators:
        step()
    return {
        "dispatched_operators": operators.total,
        "sync_operators": {name: operators.reads[name] for name in _READS},
        "cuda_launches": _count_launches(step) if on_gpu else None,
    }


class _OperatorCounter(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.total = 0
        self.reads: Counter[str] = Counter()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.total += 1
        name = func._schema.name.removeprefix("aten::")
        if name in _READS and isinstance(args[0], Tensor):
            self.reads[name] += args[0].device.type == self._device.type
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _bodies_as_one(operators: _OperatorCounter) -> Iterator[None]:
    """Counts each call of our kernels' bodies as one operator, and keeps the counter out of them:
    torch.compile refuses to run under one."""
    plain = Form.__call__

    def hidden(self: Form, *args: Any, **kwargs: Any) -> Any:
        operators.total += 1
        with _disable_current_modes():
            return plain(self, *args, **kwargs)

    with mock.patch.object(Form, "__call__", hidden):
        yield


def _count_launches(step: Callable[[], Any]) -> int:
    events = _profiled(step, on_gpu=True)
    return sum(event.count for event in events if event.key.startswith(_LAUNCHES))


def profile_step(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Runs one step without PyTorch's profiler and then one under it.

    `wall_us` is the time of the first. On a GPU `kernels` are the kernels that ran, `idle_share` is
    the part of `wall_us` in which none ran, and `host_us` are the host's operators, of which only
    the order counts, not the sum: the profiler slows all of them down. On a CPU `kernels` are
    operators by the time spent in themselves, and there is no idle share.
    """
    on_gpu = device.type == "cuda"
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    wall_us = (time.perf_counter() - start) * 1e6
    events = _profiled(step, on_gpu)
    # On a GPU's track a span of the program's own, such as an optimizer's step, lies over the
    # kernels that it began.
    of_gpu = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    of_host = _longest_first(
        (e.key, e.count, e.self_cpu_time_total) for e in events if e.device_type.name == "CPU"
    )
    found = of_host
    if on_gpu:
        found = _longest_first((e.key, e.count, e.self_device_time_total) for e in of_gpu)
    busy_us, rest = sum(row["us"] for row in found), found[_LISTED:]
    return {
        "wall_us": wall_us,
        "busy_us": busy_us,
        # Kernels of several streams may overlap; then none of the wall time is counted as idle.
        "idle_share": max(0.0, 1 - busy_us / wall_us) if on_gpu else None,
        "host_us": of_host[:_LISTED] if on_gpu else None,
        "kernels": found[:_LISTED],
        "others": {"calls": sum(r["calls"] for r in rest), "us": sum(r["us"] for r in rest)},
    }


def _longest_first(found: Iterator[tuple[str, int, float]]) -> list[dict[str, Any]]:
    rows = [{"name": name, "calls": calls, "us": us} for name, calls, us in found]
    return sorted(rows, key=lambda row: -row["us"])


def _profiled(step: Callable[[], Any], on_gpu: bool) -> Any:
    if on_gpu:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    return profiler.key_averages()
