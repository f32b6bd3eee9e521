"""Measures what an operation costs the host: `python -m bench.kernels --host --json FILE`.

The CPU time of one call, forward and backward, with Triton's own binder and launcher and a stub of
the driver in place of a GPU (stub_driver.py). PyTorch's own operators run on the CPU, at sizes so
small that they take about as long as their launch on a GPU. It does not include the time of the
GPU's driver, one or two µs per launch.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from minimind_kernels.op import Case, Sizes, build_cases
from minimind_kernels.triton_impl import launch

from bench import harness
from bench.kernels.stub_driver import stub_gpu
from bench.kernels.timing import directions

_ARCH = "sm_90"
_TOKENS = 16
_PLAIN = Sizes(
    "host", hidden=32, heads=4, kv_heads=2, head_size=16, ffn=64, qk_norm=False,
    seq_aux=True, vocab=64, experts=4, experts_per_token=2,
)  # fmt: skip
_CALLS, _ROUNDS = 20, 25


def measure_host() -> Iterator[dict[str, Any]]:
    """Yields a row for each operation: its launches, and the CPU's µs of its forward pass, of its
    backward pass, and of its launches alone, each a median over rounds of calls.

    Raises ConfigError where there is no C compiler.
    """
    torch.set_num_threads(1)
    with stub_gpu(_ARCH):
        seen: set[str] = set()
        for sizes in (_PLAIN, replace(_PLAIN, qk_norm=True)):
            for case in build_cases(sizes, _TOKENS, torch.bfloat16, "cpu"):
                if case.name not in seen:
                    seen.add(case.name)
                    yield _measure(case)


def _measure(case: Case) -> dict[str, Any]:
    us = {way: _median_us(calls[0]) for way, calls in directions(case, [(case.ours, case.inputs)])}
    launches = _launches(case)
    return {
        "name": case.name,
        "preset": case.sizes.preset,
        "dtype": "bfloat16",
        "launches": len(launches),
        "host_forward_us": us["forward"],
        "host_backward_us": us["backward"],
        "host_launches_us": _median_us(lambda: [one() for one in launches]),
    }


def _launches(case: Case) -> list[Callable[[], None]]:
    """Gives the launches of one forward and backward pass, each to be made again by itself."""
    found: list[Callable[[], None]] = []

    def keep(kernel: Any, grid: tuple[int, ...], num_warps: int, arguments: dict[str, Any]) -> None:
        found.append(lambda: launch.launch(kernel, grid, num_warps, **arguments))

    with mock.patch.object(launch, "_watcher", keep):
        # A call of the backward pass needs a forward pass first.
        dict(directions(case, [(case.ours, case.inputs)]))["backward"][0]()
    return found


def _median_us(call: Callable[[], Any]) -> float:
    """Gives the CPU's µs of one call, a median over rounds."""
    call()
    times = []
    gc.disable()
    try:
        for _ in range(_ROUNDS):
            start = time.thread_time_ns()
            for _ in range(_CALLS):
                call()
            times.append((time.thread_time_ns() - start) / _CALLS / 1e3)
    finally:
        gc.enable()
    return statistics.median(times)


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Makes the table of what each operation costs the host."""

    def us(name: str) -> Callable[[harness.Row], str]:
        return lambda row: f"{row[name]:.0f}"

    return harness.format_rows(
        rows,
        {
            "operation": lambda row: row["name"],
            "launches": lambda row: str(row["launches"]),
            "forward, host µs": us("host_forward_us"),
            "backward, host µs": us("host_backward_us"),
            "of both, launches alone": us("host_launches_us"),
        },
    )
