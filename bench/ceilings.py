"""Measures the most that the machine does now: a copy and a matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimind.runtime.devices import Device

_COPY_BYTES = {"cpu": 1 << 26, "gpu": 1 << 30}
"""Far more than any cache holds."""
_PRODUCT_SIZE = {"cpu": 1024, "gpu": 8192}
_ROUNDS = 11


def measure_ceilings(device: Device) -> dict[str, Any]:
    """Gives bytes/s of a copy (read + written) and FLOP/s of a square product, bf16 where the
    device is quicker in it, on as many threads as PyTorch has now; the quickest of a few rounds."""
    dtype = torch.bfloat16 if device.supports_bf16 else torch.float32
    size, num_bytes = _PRODUCT_SIZE[device.kind], _COPY_BYTES[device.kind]
    where: dict[str, Any] = {"device": device.torch_device}
    source = torch.ones(num_bytes, dtype=torch.uint8, **where)
    target = torch.empty_like(source)
    copy_s = min(_seconds(target.copy_, source, device))
    del source, target
    product_s = min(_product_seconds(size, dtype, device))
    if device.kind == "gpu":
        torch.cuda.empty_cache()
    return {
        "copy_bytes_per_s": 2 * num_bytes / copy_s,
        "product_flops_per_s": 2 * size**3 / product_s,
        "product_dtype": str(dtype).removeprefix("torch."),
    }


def probe_product(device: Device) -> float:
    """Gives FLOP/s of a matrix product now, the median of a few. It drops when other programs run
    or the clock is lowered, and so does a benchmark measured at the same time."""
    dtype = torch.bfloat16 if device.kind == "gpu" else torch.float32
    size = _PRODUCT_SIZE[device.kind]
    return 2 * size**3 / statistics.median(_product_seconds(size, dtype, device))


def _product_seconds(size: int, dtype: torch.dtype, device: Device) -> list[float]:
    a, b = (torch.randn(size, size, device=device.torch_device).to(dtype) for _ in range(2))
    return _seconds(a.matmul, b, device)


def _seconds(call: Callable[[Tensor], Any], other: Tensor, device: Device) -> list[float]:
    seconds = []
    for _ in range(_ROUNDS):
        _wait(device)
        start = time.perf_counter()
        call(other)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _wait(device: Device) -> None:
    if device.kind == "gpu":
        torch.cuda.synchronize(device.torch_device)
