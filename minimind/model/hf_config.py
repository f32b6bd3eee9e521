"""Reads and writes config.json in Hugging Face's format, without `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind.config.json_file import load_json
from minimind.config.model import MAX_LAYERS, ModelConfig
from minimind.config.rope_scaling import ROPE_FIELDS
from minimind.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"

_SAME_NAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_EXPERTS = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "mlp_only_layers",
)
_OURS = ("model_type", "norm_cast_before_weight", "dropout")
"""Fields that Hugging Face does not have; they stand in a section of config.json that it
ignores."""
_OURS_EXPERTS = (*_OURS, "use_qk_norm", "n_shared_experts", "seq_aux")

_OWN_FAMILY = "minimind_moe"
"""The model_type of models that no Hugging Face class computes: with shared experts, or with
experts but no QK norm."""
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    _OWN_FAMILY: "MiniMindMoeForCausalLM",
}


def _family(config: ModelConfig) -> str:
    """Gives the model_type. Hugging Face calls a Llama with QK norm Qwen3."""
    if config.num_experts == 0:
        return "qwen3" if config.use_qk_norm else "llama"
    return "qwen3_moe" if config.use_qk_norm and not config.n_shared_experts else _OWN_FAMILY


def is_own_family(config: ModelConfig) -> bool:
    """Tells whether `transformers` has no class that computes the model."""
    return _family(config) == _OWN_FAMILY


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """Gives the content of config.json."""
    family, values = _family(config), config.to_dict()
    # A step of 1 gives experts to every layer that mlp_only_layers does not name.
    experts = {name: values[name] for name in _EXPERTS} | {"decoder_sparse_step": 1}
    ours = _OURS_EXPERTS if config.num_experts else _OURS
    return {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **{name: values[name] for name in _SAME_NAME},
        **(experts if config.num_experts else {}),
        "rope_scaling": config.rope_scaling,
        "minimind": {name: values[name] for name in ours},
    }


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128},
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
    },
    _OWN_FAMILY: {},
}
"""Hugging Face's defaults for fields that a config.json leaves out, where the families differ."""
_REFUSED = {
    "minimind": "a folder of the original project with code of its own. Convert it first: minimind "
    "convert --input {folder} --to minimind --output FOLDER",
    "qwen2": "its q, k and v have biases; models here have none",
}
"""Why certain common model_types are refused."""
_SUPPORTED: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
}


def load_hf_config(folder: Path) -> ModelConfig:
    """Reads the config.json of this project, or of any Llama, Qwen3 or Qwen3-MoE model on Hugging
    Face."""
    path = folder / CONFIG_FILE
    try:
        values = load_json(path)
        family, ours = str(values["model_type"]), dict(values.get("minimind") or {})
        layer_types = set(values.get("layer_types") or ())
        # transformers 5 writes rope_theta and rope_scaling as one object, rope_parameters.
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the config.json of a model") from None
    if family in _REFUSED:
        reason = _REFUSED[family].format(folder=folder)
        raise CheckpointError(f"{path}: model_type {family!r}: {reason}")
    if family not in _ABSENT:
        known = ", ".join(map(repr, _ABSENT))
        raise CheckpointError(f"{path}: model_type {family!r}; known: {known}")
    for name, only in _SUPPORTED.items():
        if (given := rope.pop(name, values.get(name))) not in (None, only):
            raise CheckpointError(f"{path}: {name} is {given!r}; models here have {only!r}")
    if other := layer_types - {"full_attention"}:
        kinds = sorted(map(str, other))
        raise CheckpointError(f"{path}: layer_types holds {kinds}; all attention is full")
    if missing := [name for name in _REQUIRED if values.get(name) is None]:
        raise CheckpointError(f"{path}: {missing[0]} is missing")
    fields: dict[str, Any] = {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "num_key_value_heads": values["num_attention_heads"],
        **_ABSENT[family],
        **{name: values[name] for name in _SAME_NAME if values.get(name) is not None},
        **(_read_experts(values) if family.endswith("_moe") else {}),
        "model_type": "llama" if family == "llama" else "qwen3",
        "use_qk_norm": family != "llama",
        # Hugging Face's own models multiply by the norm's weight after the cast.
        "norm_cast_before_weight": True,
    }
    if isinstance(end := fields.get("eos_token_id"), list):
        fields["eos_token_id"] = end[0] if end else None
    try:
        if (theta := rope.pop("rope_theta", None)) is not None:
            fields["rope_theta"] = theta
        fields["rope_scaling"] = _read_rope_scaling(rope, fields["max_position_embeddings"], path)
        return ModelConfig.from_dict(fields | ours, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _read_experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the experts' fields; the layers without experts become mlp_only_layers, whichever
    fields define them."""
    # transformers 5 writes num_experts under the name num_local_experts.
    values = {"num_experts": values.get("num_local_experts"), **values}
    fields = {name: values[name] for name in _EXPERTS if values.get(name) is not None}
    step, layers = values.get("decoder_sparse_step"), values["num_hidden_layers"]
    if isinstance(step, int) and step > 1 and isinstance(layers, int) and layers <= MAX_LAYERS:
        skipped = {i for i in range(layers) if (i + 1) % step}
        fields["mlp_only_layers"] = sorted(skipped.union(fields.get("mlp_only_layers", ())))
    return fields


def _read_rope_scaling(
    rope: dict[str, Any], max_positions: int, path: Path
) -> dict[str, Any] | None:
    """Converts Hugging Face's rope_scaling to MiniMind's; a missing value gets the default of
    `transformers`."""
    rope_type = rope.pop("rope_type", rope.pop("type", "default"))
    if rope_type == "default":
        return None
    if not isinstance(rope_type, str) or rope_type not in ROPE_FIELDS:
        raise CheckpointError(
            f"{path}: the rope_scaling is of type {rope_type!r}; known: {', '.join(ROPE_FIELDS)}"
        )
    rope = {k: v for k, v in rope.items() if v is not None and (k, v) != ("truncate", True)}
    if rope_type != "yarn":
        return {"rope_type": rope_type} | rope
    try:
        usual = 0.1 * math.log(max(rope["factor"], 1.0)) + 1.0
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{path}: rope_scaling of type {rope_type!r} needs a factor, a number"
        ) from None
    left_out = {"attention_factor": usual, "original_max_position_embeddings": max_positions}
    return {"rope_type": rope_type} | left_out | rope
