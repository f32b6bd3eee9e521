"""Computes the tables of rotary position embeddings (Su et al. 2021), for longer contexts scaled by
YaRN, linearly or as Llama 3 does."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

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
    factor = float((config.rope_scaling or {}).get("attention_factor", 1.0))
    return _tables(frequencies, factor, 1 << max(length - 1, 1).bit_length(), device)


@functools.lru_cache(maxsize=16)
def _tables(
    frequencies: tuple[float, ...], factor: float, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, send(frequencies, device, torch.float32))
    return angles.cos() * factor, angles.sin() * factor


def _frequencies(config: ModelConfig) -> Tensor:
    """Gives the frequencies theta^(-2i/H), scaled as the configuration says."""
    size, scaling = config.head_dim, config.rope_scaling
    plain = config.rope_theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return plain / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        share = _share_llama3_divides(plain, scaling)
    else:
        share = _share_yarn_divides(config, scaling)
    return plain * (1 - share + share / scaling["factor"])


def _share_yarn_divides(config: ModelConfig, scaling: Mapping[str, Any]) -> Tensor:
    """Gives the share of each frequency that YaRN divides by `factor`, [H/2] (Peng et al. 2023,
    §3.2)."""
    size, original = config.head_dim, scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        turns = original / (2 * math.pi * rotations)
        return size * math.log(turns) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), size // 2 - 1)
    index = torch.arange(size // 2, dtype=torch.float32)
    return ((index - low) / max(high - low, 0.001)).clamp(0, 1)


def _share_llama3_divides(plain: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Gives the share of each frequency that Llama 3 divides by `factor`, [H/2]: none of one that
    turns `high_freq_factor` times or more in the original context, all of one that turns
    `low_freq_factor` times or less, and a linear blend between (transformers,
    modeling_rope_utils.py)."""
    turns = plain * scaling["original_max_position_embeddings"] / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return ((high - turns) / (high - low)).clamp(0, 1)
