"""Checks how rotary positions are scaled to longer contexts: YaRN, linear or Llama 3's scaling."""

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
ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "yarn": tuple(YARN),
    "linear": ("rope_type", "factor"),
    "llama3": (
        "rope_type",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""The fields of each rope_type, under Hugging Face's names. YaRN's have defaults; the others must
be given."""


def check_rope_scaling(value: Any) -> dict[str, Any]:
    """Gives the complete table that `value` stands for, "yarn" or an object. Raises ConfigError."""
    if value == "yarn":
        return dict(YARN)
    rope_type = value.get("rope_type") if isinstance(value, dict) else None
    fields = ROPE_FIELDS.get(rope_type) if isinstance(rope_type, str) else None
    if not isinstance(value, dict) or fields is None:
        raise ConfigError(
            f"rope_scaling is {value!r}; it must be 'yarn' or an object whose rope_type is one of "
            f"{', '.join(ROPE_FIELDS)}"
        )
    if unknown := sorted(set(value) - set(fields)):
        raise ConfigError(
            f"rope_scaling of type {rope_type!r} has no {unknown[0]}; it has {', '.join(fields)}"
        )
    if rope_type == "yarn":
        value = YARN | value
    for name in fields:
        number = value.get(name)
        if name != "rope_type" and not _is_positive(number):
            raise ConfigError(f"rope_scaling: {name} is {number!r}; it must be a number above 0")
    if rope_type == "llama3" and value["high_freq_factor"] <= value["low_freq_factor"]:
        raise ConfigError(
            f"rope_scaling: high_freq_factor is {value['high_freq_factor']}; it must be above "
            f"low_freq_factor, {value['low_freq_factor']}"
        )
    return dict(value)


def _is_positive(number: Any) -> bool:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and 0 < number < math.inf
