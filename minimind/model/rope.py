"""Computes the tables of rotary position embeddings (Su et al. 2021), optionally with YaRN."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.runtime.devices import send


def rope_tables(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gives cos and sin of position · frequency, fp32 [P, H/2], for P >= `length` positions.

    They are no module buffers, since an engine that casts a module to bf16 would cast buffers too.
    P is a power of two, so that few tables are made.
    """
    frequencies = tuple(_frequencies(config).tolist())
    factor = float(config.rope_scaling["attention_factor"]) if config.rope_scaling else 1.0
    return _tables(frequencies, factor, 1 << max(length - 1, 1).bit_length(), device)


@functools.lru_cache(maxsize=16)
def _tables(
    frequencies: tuple[float, ...], factor: float, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, send(frequencies, device, torch.float32))
    return angles.cos() * factor, angles.sin() * factor


def _frequencies(config: ModelConfig) -> Tensor:
    """Gives the frequencies theta^(-2i/H); with YaRN, a blend of these and the same divided by
    `factor` (Peng et al. 2023, §3.2)."""
    size, theta = config.head_dim, config.rope_theta
    plain = theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaling = config.rope_scaling
    if scaling is None:
        return plain

    def dimension(rotations: float) -> float:
        original = scaling["original_max_position_embeddings"]
        return size * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), size // 2 - 1)
    index = torch.arange(size // 2, dtype=torch.float32)
    ramp = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp + ramp / scaling["factor"])
