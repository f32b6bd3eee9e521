"""Works out the configuration of a model of the original MiniMind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.generations import Generation

_LAYER = "model.layers.0."
_SAME_NAME = (
    "head_dim",
    "dropout",
    "rope_theta",
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_SPELLINGS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_seq_len",
    "rms_norm_eps": "norm_eps",
}
"""Our names of fields, and those that 2504's config.json has."""
_EXPERT_FIELDS = {
    "num_experts": ("num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "moe_intermediate_size": ("moe_intermediate_size", "intermediate_size", "hidden_dim"),
    "n_shared_experts": ("n_shared_experts",),
    "router_aux_loss_coef": ("router_aux_loss_coef", "aux_loss_alpha"),
    "norm_topk_prob": ("norm_topk_prob",),
    "seq_aux": ("seq_aux",),
}
"""Our names of the experts' fields, and those of the generations."""
_ONLY = {"hidden_act": "silu", "scoring_func": "softmax"}
_NAMED = ("model_type", "use_qk_norm")
"""Fields that the names of the tensors tell."""
_SCALED_BEYOND = 2048
"""The original uses YaRN only for contexts above this many positions."""


def read_config_fields(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Gives the ModelConfig fields that a config.json of the original says. Raises CheckpointError
    for one that no model here can have."""
    for name, only in _ONLY.items():
        if (given := values.get(name)) not in (None, only):
            raise CheckpointError(f"{origin}: {name} is {given!r}; models here have {only!r}")
    spellings = {name: (name,) for name in _SAME_NAME}
    spellings |= {name: (name, old) for name, old in _SPELLINGS.items()}
    if values.get("use_moe"):
        spellings |= _EXPERT_FIELDS
    fields: dict[str, Any] = {}
    for name, spelled in spellings.items():
        found = [values[key] for key in spelled if values.get(key) is not None]
        if found:
            fields[name] = found[0]
    if isinstance(shared := fields.get("n_shared_experts"), bool):  # 2504 has true for one
        fields["n_shared_experts"] = int(shared)
    if "rope_theta" not in fields and isinstance(rope := values.get("rope_parameters"), dict):
        fields["rope_theta"] = rope.get("rope_theta", 1e6)
    context = fields.get("max_position_embeddings", 0)
    is_long = isinstance(context, int) and context > _SCALED_BEYOND
    if values.get("inference_rope_scaling") and is_long:
        fields["rope_scaling"] = "yarn"
    return fields


def spell_field(name: str, generation: Generation) -> str:
    """Gives the name that a generation's configuration has for a ModelConfig field."""
    if generation.name == "2504" and name in _SPELLINGS:
        return _SPELLINGS[name]
    if generation.name != "3" and name in ("num_experts", "router_aux_loss_coef"):
        return _EXPERT_FIELDS[name][1]
    return name


def make_config(
    generation: Generation,
    shapes: Mapping[str, tuple[int, ...]],
    told: Mapping[str, Any],
    settings: Mapping[str, Any],
    origin: str,
) -> tuple[ModelConfig, list[str]]:
    """Makes the configuration from the tensors' shapes (by Hugging Face's names), from `told`, what
    a config.json says, and from `settings`, the user's own; a later one counts. What none of them
    says is as the generation's code sets it, and the notes say so. Raises CheckpointError where
    the number of heads is unsure, ConfigError for settings that cannot be."""
    known = {**told, **settings}
    defaults = dict(generation.defaults)
    fields = _read_shapes(shapes, generation, known, origin)
    if "num_experts" in fields:
        defaults |= generation.expert_defaults
    assumed = {name: value for name, value in defaults.items() if name not in {*known, *fields}}
    try:
        config = ModelConfig.from_dict(assumed | fields | known, origin)
    except ConfigError as error:
        raise ConfigError(f"{error}. Set a field with --set FIELD=VALUE") from None
    unsure = {name: value for name, value in assumed.items() if name not in _NAMED}
    said = ", ".join(f"{name} {value}" for name, value in sorted(unsure.items()))
    notes = [f"generation {generation.name} ({generation.when}), by the names of its tensors"]
    if said:
        notes.append(
            f"taken from that generation, since the file does not say it: {said}. Change one with "
            "--set FIELD=VALUE"
        )
    if "router_aux_loss_coef" in assumed and generation.name == "2601":
        notes.append("router_aux_loss_coef was 0.1 before December 2025; only training uses it")
    return config, notes


def _read_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    generation: Generation,
    known: Mapping[str, Any],
    origin: str,
) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise CheckpointError(f"{origin}: the tensor {name} is missing")
        if 0 in shapes[name] or not shapes[name]:
            raise CheckpointError(f"{origin}: {name} is {list(shapes[name])}, which is no weight")
        return shapes[name]

    embedding = "lm_head.weight"
    if "model.embed_tokens.weight" in shapes or embedding not in shapes:
        embedding = "model.embed_tokens.weight"
    layers = {
        int(found[1]) for name in shapes if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))
    }
    fields: dict[str, Any] = {
        "vocab_size": shape(embedding)[0],
        "hidden_size": shape(embedding)[-1],
        "num_hidden_layers": max(layers, default=0) + 1,
        **_read_heads(shape, generation, known, origin),
    }
    router = f"{_LAYER}mlp.gate.weight"
    if router not in shapes:
        return fields | {"intermediate_size": shape(f"{_LAYER}mlp.gate_proj.weight")[0]}
    size = shape(f"{_LAYER}mlp.experts.0.gate_proj.weight")[0]
    pattern = re.compile(re.escape(_LAYER) + r"mlp\.shared_experts\.(\d{1,9})\.")
    found = (pattern.match(name) for name in shapes)
    shared = {int(each[1]) for each in found if each}
    fields |= {"num_experts": shape(router)[0], "n_shared_experts": len(shared)}
    return fields | {"intermediate_size": size, "moe_intermediate_size": size}


def _read_heads(
    shape: Any, generation: Generation, known: Mapping[str, Any], origin: str
) -> dict[str, int]:
    """Reads the heads: exactly where the norm of q has a head's size; else from the number of heads
    that is known, or that the generation has, if its number of key heads fits."""
    q_rows = shape(f"{_LAYER}self_attn.q_proj.weight")[0]
    k_rows = shape(f"{_LAYER}self_attn.k_proj.weight")[0]
    if "num_attention_heads" not in generation.defaults:
        size = shape(f"{_LAYER}self_attn.q_norm.weight")[0]
        return {
            "head_dim": size,
            "num_attention_heads": q_rows // size,
            "num_key_value_heads": k_rows // size,
        }
    usual, usual_kv = (
        generation.defaults[name] for name in ("num_attention_heads", "num_key_value_heads")
    )
    heads = known.get("num_attention_heads", usual)
    if "num_attention_heads" not in known and q_rows * usual_kv != k_rows * usual:
        raise CheckpointError(
            f"{origin}: the number of heads is unsure. q_proj has {q_rows} rows and k_proj "
            f"{k_rows}, where generation {generation.name} has {usual} heads over {usual_kv} key "
            f"heads. Give the right number: --set num_attention_heads=16"
        )
    if not isinstance(heads, int) or heads < 1 or q_rows % heads or k_rows % (q_rows // heads):
        raise ConfigError(
            f"{origin}: num_attention_heads is {heads!r}, which does not divide the {q_rows} rows "
            f"of q_proj and the {k_rows} of k_proj into whole heads"
        )
    size = q_rows // heads
    return {"head_dim": size, "num_key_value_heads": k_rows // size}
