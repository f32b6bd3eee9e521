"""Lists GPUs with the figures from their data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
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
    "H200 NVL": Gpu(
        flops=835.5e12, bytes_per_s=4.8e12, link_bytes_per_s=450e9,
        memory_gib=139.8, capability=(9, 0), multiprocessors=132,
    ),
    "H200": Gpu(
        flops=989.5e12, bytes_per_s=4.8e12, link_bytes_per_s=450e9,
        memory_gib=139.8, capability=(9, 0), multiprocessors=132,
    ),
    "GH200": Gpu(
        flops=989.5e12, bytes_per_s=4.0e12, link_bytes_per_s=450e9,
        memory_gib=94.5, capability=(9, 0), multiprocessors=132,
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
"""The GPUs by a part of the device's name; the first match counts."""


def find_gpu(name: str) -> tuple[str, Gpu] | None:
    """Gives a GPU's key in GPUS and its figures from the device's name; None for a GPU without a
    data sheet here, and for a MIG slice."""
    if "MIG" in name:
        return None
    return next((found for found in GPUS.items() if re.search(rf"\b{found[0]}\b", name)), None)
