"""Checks how rotary positions are scaled to longer contexts (YaRN)."""

from __future__ import annotations

import math
from typing import Any

from minimind.errors import ConfigError

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}
"""The values that `--set rope_scaling=yarn` stands for, for contexts up to 32,768 (Peng et al.
2023)."""


def check_rope_scaling(value: Any) -> dict[str, Any]:
    """Gives the complete table that `value` stands for, "yarn" or some of its fields. Raises
    ConfigError."""
    if value == "yarn":
        return dict(YARN)
    if not isinstance(value, dict) or value.get("rope_type") != "yarn" or set(value) - set(YARN):
        raise ConfigError(
            f"rope_scaling is {value!r}; it must be 'yarn' or an object with rope_type 'yarn' and "
            f"some of {', '.join(YARN)}"
        )
    for name, number in value.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if name != "rope_type" and not (is_number and 0 < number < math.inf):
            raise ConfigError(f"rope_scaling: {name} is {number!r}; it must be a number above 0")
    return YARN | value
