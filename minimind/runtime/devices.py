"""The device a run computes on, what it can do and its published peak."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from minimind_kernels import backend
from torch import Tensor

from minimind.errors import ConfigError

BF16_PEAK_FLOPS = {
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}
"""Dense bf16 products a second from the makers' data sheets, by words of the device's name; where
two match, the first."""


PRECISIONS = ("auto", "bf16", "fp32")
"""MINIMIND_PRECISION holds one of these: "auto" leaves the choice to the machine."""


@dataclass(frozen=True, slots=True)
class Device:
    torch_device: torch.device
    name: str
    supports_bf16: bool
    """Whether bf16 products are quicker than fp32 ones there."""
    precision: str
    """It stands for "auto": bf16 where that is quicker, else fp16 on a GPU and fp32 on a CPU; or
    what MINIMIND_PRECISION says."""
    why_not_bf16: str
    peak_flops: float | None
    """None where no data sheet says: then no MFU is shown."""
    memory_bytes: int | None = None
    """All it has, which on a CPU is the machine's; None where nobody looked."""

    @property
    def kind(self) -> str:
        """cpu or gpu, as the size tables and DeepSpeed's JSON speak of it."""
        return "cpu" if self.torch_device.type == "cpu" else "gpu"


def find_device(local_rank: int = 0) -> Device:
    """The GPU of this rank, or the CPU where there is none (or CUDA_VISIBLE_DEVICES hides it).
    Raises ConfigError for a MINIMIND_PRECISION that is none."""
    if torch.cuda.is_available():
        index = local_rank % torch.cuda.device_count()
        name = torch.cuda.get_device_name(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0) or torch.version.hip is not None
        # A slice of a GPU (MIG) has no data sheet.
        known = () if "MIG" in name else BF16_PEAK_FLOPS.items()
        peak = next((v for k, v in known if re.search(rf"\b{k}\b", name)), None)
        precision, why = _precision(bf16, "fp16", f"{name} has no bf16 units")
        memory = torch.cuda.get_device_properties(index).total_memory
        return Device(torch.device("cuda", index), name, bf16, precision, why, peak, memory)
    bf16 = cpu_has_bf16()
    precision, why = _precision(bf16, "fp32", "this CPU has no bf16 instructions")
    memory = psutil.virtual_memory().total
    return Device(torch.device("cpu"), _cpu_name(), bf16, precision, why, None, memory)


def _precision(supports_bf16: bool, otherwise: str, why: str) -> tuple[str, str]:
    """Gives what stands for "auto", and why that is not bf16 ("" where it is)."""
    wanted = os.environ.get("MINIMIND_PRECISION") or "auto"
    if wanted not in PRECISIONS:
        raise ConfigError(
            f"MINIMIND_PRECISION={wanted!r} is not known; use {', '.join(PRECISIONS)}"
        )
    if wanted != "auto":
        return wanted, "" if wanted == "bf16" else f"MINIMIND_PRECISION={wanted}"
    return ("bf16", "") if supports_bf16 else (otherwise, why)


def check_kernels(device: Device) -> None:
    """Whether MINIMIND_KERNELS and MINIMIND_COMPILE can be met there. Raises ConfigError."""
    try:
        backend.check_settings(device.torch_device)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None


def cpu_has_bf16() -> bool:
    """avx512_bf16 or AMX on x86, bf16 on Arm: without them bf16 products take 50 times longer."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def limit_threads(local_world_size: int) -> None:
    """Shares the CPU's cores among the ranks of this machine, unless OMP_NUM_THREADS says."""
    if "OMP_NUM_THREADS" in os.environ and os.environ["OMP_NUM_THREADS"] != "":
        return
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))


def _cpu_name() -> str:
    return _cpuinfo("model name") or "CPU"


def _cpuinfo(field: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return ""


def send(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Makes a tensor of numbers that the host has. A GPU gets them through page-locked memory:
    `torch.tensor(…, device=…)` would wait there for all that was launched before."""
    made = torch.tensor(values, dtype=dtype)
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)
