"""Finds the device that a run computes on, what it supports, and its published peak."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from minimind_kernels import backend
from torch import Tensor

from minimind.errors import ConfigError
from minimind.runtime.gpus import GPUS, find_gpu

logger = logging.getLogger("minimind")


_DRIVERS_GPUS = Path("/proc/driver/nvidia/gpus")
"""Has a subfolder for each GPU that NVIDIA's driver knows."""
PRECISIONS = ("auto", "bf16", "fp32")
"""The values of MINIMIND_PRECISION; "auto" leaves the choice to the machine."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Device:
    torch_device: torch.device
    name: str
    supports_bf16: bool
    """True where bf16 products are faster than fp32 ones."""
    precision: str
    """The precision that "auto" stands for: bf16 where it is faster, else fp16 on a GPU and fp32 on
    a CPU; or the value of MINIMIND_PRECISION."""
    why_not_bf16: str
    peak_flops: float | None
    """The peak in FLOP/s; None without a data sheet, and then no MFU is shown."""
    memory_bytes: int | None = None
    """All memory of the device (of a CPU: of the machine); None if it was not determined."""

    @property
    def kind(self) -> str:
        """Gives "cpu" or "gpu", as the size tables and the DeepSpeed JSON call it."""
        return "cpu" if self.torch_device.type == "cpu" else "gpu"


def find_device(local_rank: int = 0) -> Device:
    """Finds this rank's GPU, or the CPU where there is no GPU or CUDA_VISIBLE_DEVICES hides it.
    Logs once why PyTorch cannot use an NVIDIA GPU that is there. Raises ConfigError for an unknown
    MINIMIND_PRECISION, a rank without a GPU of its own, and a GPU that this PyTorch has no code
    for."""
    if torch.cuda.is_available():
        _prefer_expandable_segments()
        index = _own_gpu(local_rank, torch.cuda.device_count())
        name = torch.cuda.get_device_name(index)
        capability = torch.cuda.get_device_capability(index)
        bf16 = capability >= (8, 0) or torch.version.hip is not None
        architectures = torch.cuda.get_arch_list()
        if architectures and not torch.version.hip and not has_code_for(capability, architectures):
            raise ConfigError(
                f"PyTorch {torch.__version__} has no code for {name} "
                f"(sm_{capability[0]}{capability[1]}): install a build for another CUDA (an older "
                "one for an older GPU), see pytorch.org/get-started, or run on the CPU with "
                'CUDA_VISIBLE_DEVICES=""'
            )
        known = find_gpu(name)
        peak = known[1].flops if known else None
        why_not = f"{name} has no bf16 units; zero2_fp16.json trains in fp16"
        precision, why = _precision(bf16, "fp16", why_not)
        memory = torch.cuda.get_device_properties(index).total_memory
        return Device(torch.device("cuda", index), name, bf16, precision, why, peak, memory)
    _say_why_no_gpu()
    bf16 = cpu_has_bf16()
    precision, why = _precision(bf16, "fp32", "this CPU has no bf16 instructions")
    memory = psutil.virtual_memory().total
    name = _cpuinfo("model name") or "CPU"
    return Device(torch.device("cpu"), name, bf16, precision, why, None, memory)


def device_by_data_sheet(name: str) -> Device:
    """Gives the GPU named `name` in GPUS as a device; it need not exist here."""
    gpu = GPUS[name]
    bf16 = gpu.capability >= (8, 0)
    precision, why = _precision(bf16, "fp16", f"{name} has no bf16 units")
    memory = int(gpu.memory_gib * 2**30)
    return Device(torch.device("cuda", 0), name, bf16, precision, why, gpu.flops, memory)


def _own_gpu(local_rank: int, count: int) -> int:
    """Gives the index of this rank's GPU among the `count` that it sees. Raises ConfigError where
    two ranks would share one: they would be half as fast at best, and NCCL refuses it."""
    if local_rank < count:
        return local_rank
    # A scheduler may show each rank only its own GPU; these launchers show all ranks the same GPUs.
    if count == 1 and not {"TORCHELASTIC_RUN_ID", "LOCAL_SIZE"} & set(os.environ):
        return 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden else ""
    raise ConfigError(
        f"rank {local_rank} of this machine has no GPU: PyTorch sees {count}{seen}, and each rank "
        f"needs its own. Start {count} (deepspeed --num_gpus {count}, torchrun --nproc_per_node "
        f'{count}), or run on the CPU with CUDA_VISIBLE_DEVICES=""'
    )


def has_code_for(capability: tuple[int, int], arch_list: Sequence[str]) -> bool:
    """Tells whether a PyTorch built for `arch_list` (sm_80, compute_90, ...) runs on a GPU of this
    capability. It must have code for the same generation that is not newer, or PTX, which the
    driver compiles."""
    for arch in arch_list:
        kind, _, number = arch.partition("_")
        digits = re.sub(r"\D", "", number)  # sm_90a
        built = int(digits[:-1]), int(digits[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


@functools.cache
def _say_why_no_gpu() -> None:
    """Logs why PyTorch does not use an NVIDIA GPU that the driver knows, unless the user hides
    it."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if is_hidden or not _DRIVERS_GPUS.is_dir() or not any(_DRIVERS_GPUS.iterdir()):
        return
    if torch.version.cuda is None:
        why = "it was built without CUDA: install the build for your driver, see pytorch.org"
    else:
        try:
            torch.cuda.init()
            why = "it sees none"
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
    logger.warning(
        "this machine has an NVIDIA GPU, but PyTorch %s cannot use it: %s. The CPU is used",
        torch.__version__, why,
    )  # fmt: skip


def _prefer_expandable_segments() -> None:
    """Makes PyTorch's allocator grow its blocks of GPU memory in place, unless the user has
    configured it: documents differ from batch to batch, and blocks of odd sizes would pile up. The
    allocator reads this once, when CUDA starts."""
    # WSL's drivers refuse it (pytorch/pytorch#192330), and PyTorch supports it on CUDA only.
    can = torch.version.cuda is not None and "microsoft" not in os.uname().release.lower()
    if can and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _precision(supports_bf16: bool, otherwise: str, why: str) -> tuple[str, str]:
    """Gives the precision that "auto" stands for, and why it is not bf16 ("" if it is)."""
    wanted = os.environ.get("MINIMIND_PRECISION") or "auto"
    if wanted not in PRECISIONS:
        raise ConfigError(
            f"MINIMIND_PRECISION={wanted!r} is not known; use {', '.join(PRECISIONS)}"
        )
    if wanted != "auto":
        return wanted, "" if wanted == "bf16" else f"MINIMIND_PRECISION={wanted}"
    return ("bf16", "") if supports_bf16 else (otherwise, why)


def check_kernels(device: Device) -> None:
    """Raises ConfigError where MINIMIND_KERNELS or MINIMIND_COMPILE cannot be met on the device."""
    try:
        backend.check_settings(device.torch_device)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from None


def cpu_has_bf16() -> bool:
    """Tells whether the CPU has avx512_bf16 or AMX (x86), or bf16 (Arm). Without them bf16 products
    take 50 times longer."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def limit_threads(local_world_size: int) -> None:
    """Shares the CPU's cores among this machine's ranks, unless OMP_NUM_THREADS is set."""
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))


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
    """Makes a tensor on `device` from the host's numbers, through page-locked memory:
    `torch.tensor(…, device=…)` would wait for everything launched before."""
    made = torch.tensor(values, dtype=dtype)
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)
