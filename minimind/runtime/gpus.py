"""Lists GPUs with the figures from their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """Holds the data-sheet figures of a GPU."""

    flops: float
    """Dense 16-bit matrix FLOP/s."""
    bytes_per_s: float
    """The memory's bandwidth."""
    link_bytes_per_s: float
    """The bandwidth to the machine's other GPUs in each direction, over NVLink or Infinity Fabric,
    else PCIe."""
    memory_gib: float
    """The memory size that PyTorch reports."""
    capability: tuple[int, int]
    multiprocessors: int


GPUS = {
    # FLOP/s, memory bytes/s, link bytes/s, GiB, capability, multiprocessors
    "H200 NVL":  Gpu(835.5e12,   4.8e12, 450e9, 139.8,  (9, 0), 132),
    "H200":      Gpu(989.5e12,   4.8e12, 450e9, 139.8,  (9, 0), 132),
    "GH200":     Gpu(989.5e12,   4.0e12, 450e9,  94.5,  (9, 0), 132),
    "H100 PCIe": Gpu(  756e12,   2.0e12,  64e9,  79.2,  (9, 0), 114),
    "H100 NVL":  Gpu(835.5e12,   3.9e12, 300e9,  93.1,  (9, 0), 132),
    "H100":      Gpu(989.5e12,  3.35e12, 450e9,  79.2,  (9, 0), 132),
    "B200":      Gpu( 2250e12,   8.0e12, 900e9, 178.4, (10, 0), 148),
    "A100":      Gpu(  312e12, 2.039e12, 300e9,  79.2,  (8, 0), 108),
    "A800":      Gpu(  312e12, 2.039e12, 200e9,  79.2,  (8, 0), 108),
    "L40S":      Gpu(  362e12,    864e9,  32e9,  44.4,  (8, 9), 142),
    "L4":        Gpu(  121e12,    300e9,  32e9,  22.0,  (8, 9),  58),
    "A10":       Gpu(  125e12,    600e9,  32e9,  22.0,  (8, 6),  72),
    "RTX 4090":  Gpu(  165e12,   1008e9,  32e9,  23.5,  (8, 9), 128),
    "RTX 3090":  Gpu(   71e12,    936e9,  32e9,  23.6,  (8, 6),  82),
    "T4":        Gpu(   65e12,    320e9,  16e9,  14.6,  (7, 5),  40),
    "MI300X":    Gpu( 1307e12,   5.3e12, 448e9, 191.7,  (9, 4), 304),
}  # fmt: skip
"""The GPUs by a part of the device's name; the first match counts."""


def find_gpu(name: str) -> tuple[str, Gpu] | None:
    """Gives a GPU's key in GPUS and its figures from the device's name; None for a GPU without a
    data sheet here, and for a MIG slice."""
    if "MIG" in name:
        return None
    return next((found for found in GPUS.items() if re.search(rf"\b{found[0]}\b", name)), None)
