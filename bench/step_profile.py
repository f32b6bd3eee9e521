"""Where the time of one training step goes: kernel by kernel, and how long the GPU waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

_LISTED = 40
"""Kernels or operators listed, the longest first; the others are summed up."""


def profile_step(step: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """One step under PyTorch's profiler.

    `wall_us` is a step's time without the profiler. On a GPU `kernels` are what ran there, and
    `idle_share` is the part of `wall_us` in which none did; on a CPU they are operators by the time
    spent in themselves, and there is no idle share.
    """
    on_gpu = device.type == "cuda"
    wall_us = _wall_us(step, on_gpu)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in profiler.key_averages():
        # On a GPU's track a span of the program's own, such as an optimizer's step, lies over the
        # kernels that it began.
        if on_gpu != (event.device_type.name == "CUDA") or (on_gpu and event.is_user_annotation):
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found.append({"name": event.key, "calls": event.count, "us": us})
    found.sort(key=lambda row: -row["us"])
    total_us = sum(row["us"] for row in found)
    rest = found[_LISTED:]
    return {
        "wall_us": wall_us,
        "busy_us": total_us,
        # Kernels of several streams may overlap; then none of the wall time is counted as idle.
        "idle_share": max(0.0, 1 - total_us / wall_us) if on_gpu else None,
        "host_us": _host_us(profiler) if on_gpu else None,
        "kernels": found[:_LISTED],
        "others": {"calls": sum(r["calls"] for r in rest), "us": sum(r["us"] for r in rest)},
    }


def _wall_us(step: Callable[[], Any], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6


def _host_us(profiler: torch.profiler.profile) -> list[dict[str, Any]]:
    """The host's operators by the time spent in themselves, under the profiler (which slows them
    all): their order counts, not their sum."""
    events = [e for e in profiler.key_averages() if e.device_type.name == "CPU"]
    events.sort(key=lambda event: -event.self_cpu_time_total)
    return [
        {"name": e.key, "calls": e.count, "us": e.self_cpu_time_total} for e in events[:_LISTED]
    ]
