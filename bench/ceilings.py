"""Measures the machine's present ceilings: the speed of a copy and of a matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.benchmark import Measurement, Timer

from minimind.runtime.devices import Device

_COPY_BYTES = {"cpu": 1 << 26, "gpu": 1 << 30}
"""Bytes of the copied tensor: far more than any cache holds."""
_PRODUCT_SIZE = {"cpu": 1024, "gpu": 8192}


def measure_ceilings(device: Device) -> dict[str, Any]:
    """Gives the bytes/s of a copy (read + written) and the FLOP/s of a square matrix product, each
    the quickest of a few rounds. The product is in bf16 where that is quicker on the device, else
    in fp32. PyTorch's number of threads stays as it is."""
    dtype = torch.bfloat16 if device.supports_bf16 else torch.float32
    num_bytes = _COPY_BYTES[device.kind]
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device.torch_device)
    copy = _measure("target.copy_(source)", source=source, target=torch.empty_like(source))
    product = _measure_product(dtype, device)
    del source
    if device.kind == "gpu":
        torch.cuda.empty_cache()
    return {
        "copy_bytes_per_s": 2 * num_bytes / min(copy.times),
        "product_flops_per_s": 2 * _PRODUCT_SIZE[device.kind] ** 3 / min(product.times),
        "product_dtype": str(dtype).removeprefix("torch."),
    }


def probe_product(device: Device) -> float:
    """Gives the present FLOP/s of a matrix product, the median of a few rounds. It drops when other
    programs run or the clock is lowered, and so does a benchmark measured at the same time."""
    dtype = torch.bfloat16 if device.kind == "gpu" else torch.float32
    return 2 * _PRODUCT_SIZE[device.kind] ** 3 / _measure_product(dtype, device).median


def _measure_product(dtype: torch.dtype, device: Device) -> Measurement:
    size = _PRODUCT_SIZE[device.kind]
    a, b = (torch.randn(size, size, device=device.torch_device).to(dtype) for _ in range(2))
    return _measure("a.matmul(b)", a=a, b=b)


def _measure(statement: str, **values: Any) -> Measurement:
    """Times rounds of a statement until the device is done."""
    timer = Timer(statement, globals=values, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.1)
