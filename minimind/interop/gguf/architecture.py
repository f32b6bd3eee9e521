"""Chooses the architecture of llama.cpp that computes a model, and writes and reads the model's
sizes as fields of a GGUF file.

llama.cpp fixes in code what other programs configure, so a model that differs from its architecture
in any point is refused. The facts about llama.cpp are from its src/models and src/llama-context.cpp
(build 11434), and the tests run it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from minimind.config.json_file import parse_json
from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.gguf import rope

LLAMA, QWEN3, QWEN3_MOE, SHARED_MOE = "llama", "qwen3", "qwen3moe", "ernie4_5-moe"
"""The names of architectures. Ernie 4.5's experts have no QK norm and add the outputs of shared
experts without a gate, as those of the 2-series do."""
ARCHITECTURES = (LLAMA, QWEN3, QWEN3_MOE, SHARED_MOE)
INTERLEAVED = frozenset({LLAMA, SHARED_MOE})
"""The architectures whose rotation pairs neighbouring dimensions of a head (2i and 2i + 1) instead
of the halves (i and i + d/2)."""

_OWN_FIELD = "minimind.config"
_OWN = (
    "model_type",
    "norm_cast_before_weight",
    "dropout",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_OWN_EXPERTS = ("router_aux_loss_coef", "seq_aux")
"""Fields of the configuration that GGUF has no place for; they are one field in JSON, which other
programs ignore."""

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_EXPERT_SIZES = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def find_architecture(config: ModelConfig) -> str:
    """Gives the architecture that computes the model. Raises ConfigError where llama.cpp has
    none."""
    if problem := rope.find_problem(config):
        raise _not_computed(problem)
    if config.num_experts == 0:
        return QWEN3 if config.use_qk_norm else LLAMA
    if not config.renormalizes_experts:
        raise _not_computed(
            "experts whose weights are not divided by their sum (norm_topk_prob is false, or the "
            "2-series with one expert a token)"
        )
    if not config.use_qk_norm:
        if config.mlp_only_layers != tuple(range(len(config.mlp_only_layers))):
            raise _not_computed(
                f"dense layers {list(config.mlp_only_layers)} that are not the first ones"
            )
        return SHARED_MOE
    if config.n_shared_experts:
        raise _not_computed("shared experts beside QK norm")
    if config.mlp_only_layers:
        raise _not_computed("dense layers beside experts with QK norm")
    return QWEN3_MOE


def _not_computed(what: str) -> ConfigError:
    return ConfigError(
        f"--to gguf: no architecture of llama.cpp computes {what}. --to hf or --to minimind keeps "
        "the model for other programs"
    )


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """Gives the fields of the model's sizes by name. Raises ConfigError."""
    architecture = find_architecture(config)
    fields: dict[str, Any] = {name: getattr(config, ours) for name, ours in _SIZES.items()}
    if config.num_experts:
        fields |= {name: getattr(config, ours) for name, ours in _EXPERT_SIZES.items()}
        fields["expert_weights_norm"] = True
    if architecture == SHARED_MOE:
        fields["expert_shared_count"] = config.n_shared_experts
        shared = config.n_shared_experts * config.moe_intermediate_size
        fields["expert_shared_feed_forward_length"] = shared
        fields["interleave_moe_layer_step"] = 1
        fields["leading_dense_block_count"] = len(config.mlp_only_layers)
    fields |= rope.to_fields(config)
    own = (*_OWN, *_OWN_EXPERTS) if config.num_experts else _OWN
    return {f"{architecture}.{name}": value for name, value in fields.items()} | {
        _OWN_FIELD: json.dumps({name: getattr(config, name) for name in own})
    }


def from_fields(fields: Mapping[str, Any], given: Mapping[str, Any], path: str) -> ModelConfig:
    """Reads the configuration; `given` holds fields of ModelConfig that the rest of the file tells.
    Raises CheckpointError, which `path` begins, for an architecture or a field that models here do
    not have."""
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: a GGUF of architecture {architecture!r}; those of models here are "
            f"{', '.join(ARCHITECTURES)}"
        )
    prefix = f"{architecture}."
    left = {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}
    values = _take_sizes(left, fields, path)
    values["rope_scaling"] = rope.take_fields(left, values["max_position_embeddings"], path)
    values["use_qk_norm"] = architecture in (QWEN3, QWEN3_MOE)
    values |= {
        "model_type": "qwen3" if values["use_qk_norm"] else "llama",
        "norm_cast_before_weight": True,
        **given,
        **_read_own(fields, path),
    }
    if architecture in (QWEN3_MOE, SHARED_MOE):
        values |= {ours: _take(left, name, path) for name, ours in _EXPERT_SIZES.items()}
        values["norm_topk_prob"] = left.pop("expert_weights_norm", True)
    if architecture == SHARED_MOE:
        values |= _take_shared(left, values, path)
    if left:
        name = min(left)
        raise CheckpointError(
            f"{path}: {prefix}{name} is {left[name]!r}; models here have nothing of the kind"
        )
    try:
        config = ModelConfig.from_dict(values, path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    with contextlib.suppress(ConfigError):
        if find_architecture(config) == architecture:
            return config
    raise CheckpointError(f"{path}: its fields are not those of the architecture {architecture!r}")


def _take(left: dict[str, Any], name: str, path: str) -> Any:
    if name not in left:
        raise CheckpointError(f"{path}: the field {name} is missing")
    return left.pop(name)


def _take_sizes(left: dict[str, Any], fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Takes the sizes out of `left`, with llama.cpp's defaults for those that a file leaves out."""
    left.setdefault("vocab_size", len(fields.get("tokenizer.ggml.tokens") or ()))
    left.setdefault("rope.freq_base", 10_000.0)
    heads = left.get("attention.head_count")
    left.setdefault("attention.head_count_kv", heads)
    if isinstance(heads, int) and heads > 0 and isinstance(left.get("embedding_length"), int):
        left.setdefault("attention.key_length", left["embedding_length"] // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        left.setdefault(name, left.get("attention.key_length"))
    values: dict[str, Any] = {}
    for name, ours in _SIZES.items():
        value = _take(left, name, path)
        value = rope.as_decimal(value) if isinstance(value, float) else value
        if values.setdefault(ours, value) != value:
            raise CheckpointError(
                f"{path}: {name} is {value}, where {values[ours]} is expected: heads here have one "
                "size, and all of it is rotated"
            )
    return values


def _take_shared(left: dict[str, Any], values: dict[str, Any], path: str) -> dict[str, Any]:
    """Takes the fields of shared experts and of dense layers."""
    step = left.pop("interleave_moe_layer_step", 1)
    if step != 1:
        raise CheckpointError(f"{path}: interleave_moe_layer_step is {step}; it is 1 here")
    count, size = left.pop("expert_shared_count", 0), values["moe_intermediate_size"]
    width = left.pop("expert_shared_feed_forward_length", count * size)
    if width != count * size:
        raise CheckpointError(
            f"{path}: {count} shared experts of {width} dimensions together; those of models here "
            f"have {size} each, as the routed ones"
        )
    dense = range(left.pop("leading_dense_block_count", 0))
    return {"n_shared_experts": count, "mlp_only_layers": list(dense)}


def _read_own(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        own = parse_json(fields.get(_OWN_FIELD, "{}"))
        return {name: own[name] for name in (*_OWN, *_OWN_EXPERTS) if name in own}
    except (ValueError, TypeError):
        raise CheckpointError(f"{path}: {_OWN_FIELD} is not a JSON object") from None
