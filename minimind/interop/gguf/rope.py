"""Writes and reads the fields of rotary scaling in a GGUF file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minimind.config.model import ModelConfig
from minimind.config.rope_scaling import YARN
from minimind.errors import CheckpointError

_PREFIX = "rope.scaling."
_IGNORED = ("finetuned", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
"""Fields that llama.cpp does not read for the architectures of models here."""


def find_problem(config: ModelConfig) -> str:
    """Says what about the scaling llama.cpp does not compute; "" where it computes all."""
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] == "linear":
        return ""
    if scaling["rope_type"] != "yarn":
        return f"rotary scaling of type {scaling['rope_type']!r} from its fields"
    for name in ("beta_fast", "beta_slow"):
        if scaling[name] != YARN[name]:
            return f"YaRN with {name} {scaling[name]} (it has {YARN[name]})"
    original = scaling["original_max_position_embeddings"]
    turns = original / (2 * math.pi * scaling["beta_slow"])
    end = config.head_dim * math.log(turns) / (2 * math.log(config.rope_theta))
    if math.ceil(end) > config.head_dim // 2 - 1:
        return (
            f"YaRN over {original} positions with rope_theta {config.rope_theta}, whose ramp ends "
            "beyond a head's last dimension"
        )
    return ""


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """Gives the fields by name; {} without scaling."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    fields: dict[str, Any] = {"type": scaling["rope_type"], "factor": float(scaling["factor"])}
    if scaling["rope_type"] == "yarn":
        fields["original_context_length"] = int(scaling["original_max_position_embeddings"])
        fields["attn_factor"] = scaling["attention_factor"] / _usual_factor(scaling["factor"])
    return {_PREFIX + name: value for name, value in fields.items()}


def _usual_factor(factor: float) -> float:
    """Gives the factor on queries and keys that llama.cpp has with YaRN by itself (Peng et al.
    2023, section 3.4); attn_factor multiplies it."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def take_fields(left: dict[str, Any], max_positions: int, path: str) -> dict[str, Any] | None:
    """Takes the fields out of `left` and gives ModelConfig's rope_scaling. Raises CheckpointError,
    which `path` begins."""
    names = ("type", "factor", "original_context_length", "attn_factor", *_IGNORED)
    found = {name: left.pop(_PREFIX + name, None) for name in names}
    kind = found["type"] or "none"
    if kind == "none":
        return None
    factor = found["factor"]
    if kind not in ("linear", "yarn") or not isinstance(factor, float):
        raise CheckpointError(
            f"{path}: {_PREFIX}type is {kind!r} with factor {factor!r}; known: 'linear' and "
            "'yarn', with a number"
        )
    if kind == "linear":
        return {"rope_type": kind, "factor": as_decimal(factor)}
    more = found["attn_factor"] if found["attn_factor"] is not None else 1.0
    return YARN | {
        "factor": as_decimal(factor),
        "original_max_position_embeddings": found["original_context_length"] or max_positions,
        # A product of rounded numbers: its last digit says nothing.
        "attention_factor": float(f"{more * _usual_factor(factor):.6g}"),
    }


def as_decimal(value: float) -> float:
    """Gives the shortest decimal number that rounds to a 32-bit float: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))
