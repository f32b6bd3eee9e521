"""Tensor names in and out, and Hugging Face folders without `transformers`.

Inside, q/k/v and gate/up are one fused matrix each; on disk every tensor has Hugging Face's name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor inside, and the tensors on disk whose rows, stacked, it is."""

    inside: str
    outside: tuple[tuple[str, int], ...]
    columns: int | None


def _layout(config: ModelConfig) -> Iterable[_Entry]:
    hidden, ffn, size = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size

    def entry(inside: str, outside: Mapping[str, int], columns: int | None = hidden) -> _Entry:
        return _Entry(inside, tuple(outside.items()), columns)

    yield entry("embed_tokens.weight", {"model.embed_tokens.weight": config.vocab_size})
    for i in range(config.num_hidden_layers):
        inside, outside = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = outside + "self_attn.", outside + "mlp."
        yield entry(
            inside + "self_attn.qkv_proj.weight",
            {f"{attention}{x}_proj.weight": n for x, n in (("q", q), ("k", kv), ("v", kv))},
        )
        yield entry(
            inside + "self_attn.o_proj.weight", {attention + "o_proj.weight": hidden}, columns=q
        )
        if config.use_qk_norm:
            for x in ("q_norm", "k_norm"):
                yield entry(f"{inside}self_attn.{x}", {f"{attention}{x}.weight": size}, None)
        yield entry(
            inside + "mlp.gate_up_proj.weight",
            {mlp + "gate_proj.weight": ffn, mlp + "up_proj.weight": ffn},
        )
        yield entry(
            inside + "mlp.down_proj.weight", {mlp + "down_proj.weight": hidden}, columns=ffn
        )
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield entry(f"{inside}{norm}.weight", {f"{outside}{norm}.weight": hidden}, None)
    yield entry("norm.weight", {"model.norm.weight": hidden}, None)
    if not config.tie_word_embeddings:
        yield entry("lm_head.weight", {"lm_head.weight": config.vocab_size})


def split_fused(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's named parameters under Hugging Face's names; views where split."""
    tensors: dict[str, Tensor] = {}
    for entry in _layout(config):
        names, rows = zip(*entry.outside, strict=True)
        tensors |= zip(names, state[entry.inside].split(list(rows)), strict=True)
    return tensors


def join_fused(
    config: ModelConfig, tensors: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """The inverse of `split_fused`. A missing, unexpected or misshapen tensor raises
    CheckpointError naming it; an output head beside tied embeddings must equal them."""
    tensors = dict(tensors)
    head = tensors.get("lm_head.weight")
    if config.tie_word_embeddings and head is not None:
        if not torch.equal(head, tensors.get("model.embed_tokens.weight", head)):
            raise CheckpointError(
                f"{origin}: lm_head.weight differs from the embedding, but the configuration ties "
                "them: set tie_word_embeddings to false in config.json"
            )
        del tensors["lm_head.weight"]
    state: dict[str, Tensor] = {}
    for entry in _layout(config):
        parts = []
        for name, rows in entry.outside:
            if name not in tensors:
                raise CheckpointError(f"{origin}: the tensor {name} is missing")
            part = tensors.pop(name)
            shape = (rows,) if entry.columns is None else (rows, entry.columns)
            if tuple(part.shape) != shape:
                raise CheckpointError(
                    f"{origin}: {name} is {list(part.shape)}, but this model's is {list(shape)}"
                )
            parts.append(part)
        state[entry.inside] = torch.cat(parts) if len(parts) > 1 else parts[0]
    if tensors:
        raise CheckpointError(f"{origin}: not of this model: {', '.join(sorted(tensors)[:5])}")
    return state


def save_hf_folder(
    folder: Path, config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads as Llama or Qwen3."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in split_fused(config, state).items()
    }
    values = to_hf_config(config) | {"dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(values, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_hf_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the model's own named parameters, in the dtype on disk."""
    config = load_hf_config(folder)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None
    return config, join_fused(config, tensors, str(folder))


def hash_weights(folder: Path) -> str:
    """Of the bytes of the weight files."""
    digest = hashlib.blake2b(digest_size=20)
    for path in _weight_files(folder):
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        raise CheckpointError(f"{folder}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / Path(shard).name for shard in shards]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from None


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
_OURS = ("model_type", "norm_cast_before_weight", "dropout")
"""Fields that Hugging Face has no word for, kept in a section that it ignores."""


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json: Qwen3 is what Hugging Face calls a Llama with QK norm."""
    family = "qwen3" if config.use_qk_norm else "llama"
    return {
        "architectures": [{"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[family]],
        "model_type": family,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **{name: getattr(config, name) for name in _SAME_NAME},
        "rope_scaling": config.rope_scaling,
        "minimind": {name: getattr(config, name) for name in _OURS},
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
}
"""What Hugging Face's own classes take where config.json says nothing, beside what both take."""
_SUPPORTED: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
}


def load_hf_config(folder: Path) -> ModelConfig:
    """Reads config.json of this project or of any Llama or Qwen3 of Hugging Face's."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        family, ours = values["model_type"], dict(values.get("minimind") or {})
        # transformers 5 writes rope_theta and rope_scaling as one object, rope_parameters.
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the config.json of a model") from None
    if family not in ("llama", "qwen3"):
        raise CheckpointError(f"{path}: model_type {family!r}; known: 'llama', 'qwen3'")
    for name, only in _SUPPORTED.items():
        if (given := rope.pop(name, values.get(name))) not in (None, only):
            raise CheckpointError(f"{path}: {name} is {given!r}; models here have {only!r}")
    if other := set(values.get("layer_types") or ()) - {"full_attention"}:
        raise CheckpointError(f"{path}: layer_types holds {sorted(other)}; all attention is full")
    if missing := [name for name in _REQUIRED if values.get(name) is None]:
        raise CheckpointError(f"{path}: {missing[0]} is missing")
    fields: dict[str, Any] = {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "num_key_value_heads": values["num_attention_heads"],
        **_ABSENT[family],
        **{name: values[name] for name in _SAME_NAME if values.get(name) is not None},
        "model_type": family,
        "use_qk_norm": family == "qwen3",
        # Hugging Face's own models multiply after the cast.
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


def _read_rope_scaling(
    rope: dict[str, Any], max_positions: int, path: Path
) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling as ours; what is left out is what `transformers` takes then."""
    rope_type = rope.pop("rope_type", rope.pop("type", "default"))
    if rope_type == "default":
        return None
    rope = {k: v for k, v in rope.items() if v is not None and (k, v) != ("truncate", True)}
    try:
        usual = 0.1 * math.log(max(rope["factor"], 1.0)) + 1.0
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{path}: rope_scaling of type {rope_type!r} needs a factor, a number"
        ) from None
    left_out = {"attention_factor": usual, "original_max_position_embeddings": max_positions}
    return {"rope_type": rope_type} | left_out | rope
