"""Describes the three generations of the original MiniMind: their tensor names, and the fields that
their files leave out.

Source: github.com/jingyaogong/minimind, model/model.py of early April 2025 (2504) and
model/model_minimind.py of January 2026 (2601) and August 2026 (3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minimind.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Generation:
    """Describes one generation of the original."""

    name: str
    when: str
    defaults: Mapping[str, Any]
    """Fields that the shapes of tensors do not show, with the values in the generation's code."""
    expert_defaults: Mapping[str, Any]
    """The same, of a model with experts."""
    lora_rank: int
    """The rank that its scripts give every adapter."""


_SERIES_2: dict[str, Any] = {
    "model_type": "llama",
    "use_qk_norm": False,
    "rms_norm_eps": 1e-5,
    "norm_cast_before_weight": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
}
_EXPERTS_2: dict[str, Any] = {"num_experts_per_tok": 2, "norm_topk_prob": True, "seq_aux": True}
GENERATIONS = {
    "2504": Generation(
        "2504",
        "February to April 2025",
        _SERIES_2 | {"max_position_embeddings": 8192},
        _EXPERTS_2 | {"router_aux_loss_coef": 0.1},
        lora_rank=16,
    ),
    "2601": Generation(
        "2601",
        "April 2025 to January 2026",
        _SERIES_2 | {"max_position_embeddings": 32768},
        # 0.1 before December 2025.
        _EXPERTS_2 | {"router_aux_loss_coef": 0.01},
        lora_rank=8,
    ),
    "3": Generation(
        "3",
        "from April 2026",
        {
            "model_type": "qwen3",
            "use_qk_norm": True,
            "rms_norm_eps": 1e-6,
            "norm_cast_before_weight": False,
            "rope_theta": 1e6,
            "max_position_embeddings": 32768,
        },
        {"num_experts_per_tok": 1, "norm_topk_prob": True, "router_aux_loss_coef": 5e-4},
        lora_rank=16,
    ),
}

_WORDS = {
    "attention": "self_attn",
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "feed_forward": "mlp",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "embed_tokens",
    "output": "lm_head",
    "shared_experts": "shared_experts.0",
}
"""What the parts of a name in 2504 are called on Hugging Face. It has one shared expert."""
_OLD_WORDS = {new: old for old, new in _WORDS.items()}


def find_generation(names: Iterable[str], origin: str) -> Generation:
    """Finds the generation from the names of tensors, which may be adapters'. Raises
    CheckpointError where no generation has such names."""
    words = {word for name in names for word in name.split(".")}
    if words & {"attention", "feed_forward", "tok_embeddings"}:
        return GENERATIONS["2504"]
    if words & {"self_attn", "mlp"}:
        return GENERATIONS["3" if "q_norm" in words else "2601"]
    some = ", ".join(sorted(names)[:3]) or "none"
    raise CheckpointError(
        f"{origin}: not a model of the original MiniMind, by the names of its tensors: {some}"
    )


def to_hf_name(name: str) -> str:
    """Gives the Hugging Face name of a tensor or linear of 2504."""
    new = ".".join(_WORDS.get(word, word) for word in name.split("."))
    return new if new.startswith("lm_head") else f"model.{new}"


def to_2504_name(name: str) -> str:
    """Gives the name in 2504 of a tensor or linear by its Hugging Face name."""
    name = name.removeprefix("model.").replace("shared_experts.0", "shared_experts")
    words = _OLD_WORDS | {"shared_experts": "shared_experts"}
    return ".".join(words.get(word, word) for word in name.split("."))


def is_rotated(name: str) -> bool:
    """Tells whether RoPE turns what the linear of this Hugging Face name computes."""
    return name.removesuffix(".weight").endswith(("self_attn.q_proj", "self_attn.k_proj"))
