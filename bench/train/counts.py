"""Counts exactly what one training step asks of the host (operators, waits, launches), and shows
where its time goes, kernel by kernel."""

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

SYNC_OPERATORS = (
    *("_local_scalar_dense", "nonzero", "device_to_host", "host_to_device", "pageable_copy"),
    *("synchronize", "stream_synchronize", "event_synchronize"),
)
_WAITS = (
    (torch.cuda, "synchronize"),
    (torch.cuda.Stream, "stream_synchronize"),
    (torch.cuda.Event, "event_synchronize"),
)
"""Whose `synchronize` waits without an operator, and what that is counted as."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtModuleLaunchKernel")
_LISTED = 40
"""Kernels or operators listed, the longest first; the others are summed up."""


def count_step(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Counts the operators, waits and launches of one step: runs `step` once, or twice where there
    is a GPU.

    `dispatched_operators` reach PyTorch's dispatcher. `sync_operators` make the host wait for a
    GPU: reads of values (on a CPU the same operators, which cost nothing there), copies that block
    or whose host memory is not page-locked, and calls that wait for device, stream or event.

    `kernel_calls` counts the calls of our own kernels' bodies in any form. On a CPU, where
    generated code may run, operators inside such a body are not counted. `cuda_launches` comes from
    the profiler; None without a GPU.
    """
    calls: Counter[str] = Counter()
    syncs: Counter[str] = Counter()
    operators = _OperatorCounter(device, syncs)
    with _watched_forms(calls, hide=device.type == "cpu"), _watched_waits(syncs), operators:
        step()
    return {
        "dispatched_operators": operators.total,
        "sync_operators": {name: syncs[name] for name in SYNC_OPERATORS},
        "kernel_calls": sum(calls.values()),
        "cuda_launches": _count_launches(step) if device.type == "cuda" else None,
    }


class _OperatorCounter(TorchDispatchMode):
    def __init__(self, device: torch.device, syncs: Counter[str]) -> None:
        super().__init__()
        self.total = 0
        self._device, self._syncs = device, syncs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        self.total += 1
        first = args[0] if args else None
        if name in ("_local_scalar_dense", "nonzero"):
            if isinstance(first, Tensor) and first.device.type == self._device.type:
                self._syncs[name] += 1
        elif name in ("_to_copy", "copy_"):
            source: Any = args[1] if name == "copy_" else first
            is_async = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if kind := waiting_copy(source, result, is_async=is_async):
                self._syncs[kind] += 1
        return result


def waiting_copy(source: Tensor, target: Tensor, *, is_async: bool) -> str | None:
    """Tells which of SYNC_OPERATORS a copy is; None where the host goes on at once."""
    to_host = target.device.type == "cpu"
    if to_host == (source.device.type == "cpu"):
        return None
    if not is_async:
        return "device_to_host" if to_host else "host_to_device"
    return None if to_host or source.is_pinned() else "pageable_copy"


@contextlib.contextmanager
def _watched_waits(syncs: Counter[str]) -> Iterator[None]:
    def watch(plain: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            syncs[kind] += 1
            return plain(*args, **kwargs)

        return waiting

    with contextlib.ExitStack() as stack:
        for owner, kind in _WAITS:
            counted = watch(owner.synchronize, kind)
            stack.enter_context(mock.patch.object(owner, "synchronize", counted))
        yield


@contextlib.contextmanager
def _watched_forms(calls: Counter[str], hide: bool) -> Iterator[None]:
    """Counts the calls of the kernels' bodies by name; `hide` keeps operator counters out of them:
    torch.compile refuses to run under one."""
    plain = Form.__call__

    def counted(self: Form, *args: Any, **kwargs: Any) -> Any:
        if self.name is not None:
            calls[self.name] += 1
        with _disable_current_modes() if hide else contextlib.nullcontext():
            return plain(self, *args, **kwargs)

    with mock.patch.object(Form, "__call__", counted):
        yield


def _count_launches(step: Callable[[], Any]) -> int:
    events = _profiled(step, on_gpu=True)
    return sum(event.count for event in events if event.key.startswith(_LAUNCHES))


def profile_step(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Runs one step under PyTorch's profiler, and one before it without.

    `wall_us` is that of the step without. On a GPU `kernels` are what ran there, `idle_share` is
    the part of `wall_us` in which none did, and `host_us` are the host's operators, whose order
    counts and not their sum: the profiler slows them all. On a CPU `kernels` are operators by the
    time spent in themselves, and there is no idle share.
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
