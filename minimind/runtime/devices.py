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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as its maker's data sheet has it."""

    flops: float
    """Dense 16-bit products a second."""
    bytes_per_s: float
    """Of its memory."""
    link_bytes_per_s: float
    """To the other GPUs of the machine, each way: NVLink or Infinity Fabric, else PCIe."""
    memory_gib: float
    """As PyTorch reports it."""
    capability: tuple[int, int]
    multiprocessors: int


GPUS = {
    "H200": Gpu(
        flops=989.5e12, bytes_per_s=4.8e12, link_bytes_per_s=450e9,
        memory_gib=139.8, capability=(9, 0), multiprocessors=132,
    ),
    "H100 PCIe": Gpu(
        flops=756e12, bytes_per_s=2.0e12, link_bytes_per_s=64e9,
        memory_gib=79.2, capability=(9, 0), multiprocessors=114,
    ),
    "H100 NVL": Gpu(
        flops=835.5e12, bytes_per_s=3.9e12, link_bytes_per_s=300e9,
        memory_gib=93.1, capability=(9, 0), multiprocessors=132,
    ),
    "H100": Gpu(
        flops=989.5e12, bytes_per_s=3.35e12, link_bytes_per_s=450e9,
        memory_gib=79.2, capability=(9, 0), multiprocessors=132,
    ),
    "B200": Gpu(
        flops=2250e12, bytes_per_s=8.0e12, link_bytes_per_s=900e9,
        memory_gib=178.4, capability=(10, 0), multiprocessors=148,
    ),
    "A100": Gpu(
        flops=312e12, bytes_per_s=2.039e12, link_bytes_per_s=300e9,
        memory_gib=79.2, capability=(8, 0), multiprocessors=108,
    ),
    "A800": Gpu(
        flops=312e12, bytes_per_s=2.039e12, link_bytes_per_s=200e9,
        memory_gib=79.2, capability=(8, 0), multiprocessors=108,
    ),
    "L40S": Gpu(
        flops=362e12, bytes_per_s=864e9, link_bytes_per_s=32e9,
        memory_gib=44.4, capability=(8, 9), multiprocessors=142,
    ),
    "L4": Gpu(
        flops=121e12, bytes_per_s=300e9, link_bytes_per_s=32e9,
        memory_gib=22.0, capability=(8, 9), multiprocessors=58,
    ),
    "A10": Gpu(
        flops=125e12, bytes_per_s=600e9, link_bytes_per_s=32e9,
        memory_gib=22.0, capability=(8, 6), multiprocessors=72,
    ),
    "RTX 4090": Gpu(
        flops=165e12, bytes_per_s=1008e9, link_bytes_per_s=32e9,
        memory_gib=23.5, capability=(8, 9), multiprocessors=128,
    ),
    "RTX 3090": Gpu(
        flops=71e12, bytes_per_s=936e9, link_bytes_per_s=32e9,
        memory_gib=23.6, capability=(8, 6), multiprocessors=82,
    ),
    "T4": Gpu(
        flops=65e12, bytes_per_s=320e9, link_bytes_per_s=16e9,
        memory_gib=14.6, capability=(7, 5), multiprocessors=40,
    ),
    "MI300X": Gpu(
        flops=1307e12, bytes_per_s=5.3e12, link_bytes_per_s=448e9,
        memory_gib=191.7, capability=(9, 4), multiprocessors=304,
    ),
}  # fmt: skip
"""By words of the device's name; where two match, the first."""


def find_gpu(name: str) -> tuple[str, Gpu] | None:
    """Gives the GPU of a device's name, with the words it is known by; None for one without a data
    sheet here, as a slice of a GPU (MIG) is."""
    if "MIG" in name:
        return None
    return next((found for found in GPUS.items() if re.search(rf"\b{found[0]}\b", name)), None)


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
        known = find_gpu(name)
        peak = known[1].flops if known else None
        precision, why = _precision(bf16, "fp16", f"{name} has no bf16 units")
        memory = torch.cuda.get_device_properties(index).total_memory
        return Device(torch.device("cuda", index), name, bf16, precision, why, peak, memory)
    bf16 = cpu_has_bf16()
    precision, why = _precision(bf16, "fp32", "this CPU has no bf16 instructions")
    memory = psutil.virtual_memory().total
    return Device(torch.device("cpu"), _cpu_name(), bf16, precision, why, None, memory)


def device_by_data_sheet(name: str) -> Device:
    """Gives one of GPUS as a device that need not be here."""
    gpu = GPUS[name]
    bf16 = gpu.capability >= (8, 0)
    precision, why = _precision(bf16, "fp16", f"{name} has no bf16 units")
    memory = int(gpu.memory_gib * 2**30)
    return Device(torch.device("cuda", 0), name, bf16, precision, why, gpu.flops, memory)


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
