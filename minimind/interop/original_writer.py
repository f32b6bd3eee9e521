"""Writes models and adapters as the `.pth` files that the original MiniMind's own scripts load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from minimind.config.model import ModelConfig, default_intermediate_size
from minimind.errors import ConfigError
from minimind.interop.checks import Difference, adapter_difference, model_differences
from minimind.interop.generations import GENERATIONS, Generation, is_rotated, to_2504_name
from minimind.interop.options import ConvertOptions
from minimind.interop.original import open_file, read_adapter_file
from minimind.interop.original_config import spell_field
from minimind.interop.pickle_file import save_pickle
from minimind.interop.rotation import to_pairs
from minimind.interop.source import EMBEDDING, HEAD, Source, SourceAdapter, cast_finite
from minimind.lora.adapter import LoraPart
from minimind.model.state_dict import linear_parts
from minimind.runtime.devices import DTYPES

_HEADS_3 = {"num_attention_heads": 8, "num_key_value_heads": 4}


def write(source: Source, path: Path, options: ConvertOptions) -> list[str]:
    """Writes a whole model. Raises ConfigError where the generation has no such model, OSError."""
    generation = _choose(source.config, options)
    dtype = DTYPES[options.dtype] if options.dtype else source.dtype
    tensors = {
        name: cast_finite(source.tensors[name], dtype, f"{source.path}: {name}")
        for name in source.tensors
    }
    if source.config.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]  # the original's strict loading wants both names
    save_pickle(path, _named(tensors, source.config, generation))
    return _notes(source, generation)


def check(source: Source, path: Path, options: ConvertOptions) -> list[Difference]:
    """Reads the file back, with the source's configuration."""
    settings = asdict(source.config)
    told = replace(options, settings=settings, tokenizer=source.tokenizer, base=None)
    result = open_file(path, told)
    dtype = result.dtype
    return model_differences(
        source,
        result,
        lambda name: source.tensors[name].to(dtype),
        is_exact=dtype == source.dtype,
    )


def write_adapter(source: Source, path: Path, options: ConvertOptions) -> list[str]:
    """Writes an adapter alone. The original adapts every square linear, at one rank and at scale 1:
    zeros fill up the rank, and B takes the scale. Raises ConfigError where the source is no such
    adapter, OSError."""
    generation, config = _choose(source.config, options), source.config
    adapter = _adapter_of(source).parts
    square = {
        part.name: part
        for parts in linear_parts(config).values()
        for part in parts
        if part.num_rows == part.num_columns
    }
    if others := sorted(set(adapter) - set(square)):
        raise ConfigError(
            f"{source.path}: the original adapts square linears alone, and {others[0]} is none. "
            "--to pth writes the whole model with the adapter merged"
        )
    dtype = DTYPES[options.dtype or "fp32"]
    rank = max(generation.lora_rank, *(part.rank for part in adapter.values()))
    tensors: dict[str, Tensor] = {}
    for name, part in square.items():
        found = adapter.get(name) or LoraPart.empty(part.num_rows, part.num_columns)
        missing = rank - found.rank
        a_RI = F.pad(found.a_RI.float(), (0, 0, 0, missing))
        b_OR = F.pad(found.b_OR.float() * found.scale, (0, missing))
        for letter, matrix in (("A", a_RI), ("B", b_OR)):
            key = f"{name}.lora.{letter}.weight"
            tensors[key] = cast_finite(matrix, dtype, f"{source.path}: {key}")
    save_pickle(path, _named(tensors, config, generation))
    notes = [f"an adapter for generation {generation.name}, rank {rank}"]
    if rank != generation.lora_rank:
        notes.append(
            f"the original's scripts make adapters of rank {generation.lora_rank}: call "
            f"apply_lora(model, rank={rank})"
        )
    return notes


def check_adapter(source: Source, path: Path, options: ConvertOptions) -> list[Difference]:
    """Reads the adapter back and compares what it adds to each linear."""
    written = read_adapter_file(path, source.config)
    return [adapter_difference(_adapter_of(source).parts, written, options.dtype)]


def _adapter_of(source: Source) -> SourceAdapter:
    if source.adapter is None:
        raise ConfigError(f"{source.path}: a whole model, where an adapter is asked for")
    return source.adapter


def _choose(config: ModelConfig, options: ConvertOptions) -> Generation:
    """Gives the generation to write. Raises ConfigError where it has no such model."""
    generation = GENERATIONS[options.generation or ("3" if config.use_qk_norm else "2601")]
    if problem := _problem(config, generation):
        raise ConfigError(f"generation {generation.name} of the original has no {problem}")
    return generation


def _problem(config: ModelConfig, generation: Generation) -> str | None:
    """Says what the generation cannot hold of the model."""
    is_3 = generation.name == "3"
    has_head_size = config.head_dim * config.num_attention_heads != config.hidden_size
    problems = {
        "QK norm": config.use_qk_norm and not is_3,
        "model without QK norm": is_3 and not config.use_qk_norm,
        "untied output head": not config.tie_word_embeddings and not is_3,
        "head_dim apart from hidden_size / num_attention_heads": has_head_size and not is_3,
        "layers without experts beside layers with them": bool(config.mlp_only_layers),
        "shared experts": config.n_shared_experts and is_3,
        "rope_scaling but the YaRN of --inference_rope_scaling": _has_other_rope(config),
        "rope_scaling": config.rope_scaling is not None and generation.name == "2504",
        "two shared experts in one layer": config.n_shared_experts > 1
        and generation.name == "2504",
    }
    if config.num_experts and not is_3:
        other_size = config.moe_intermediate_size != config.intermediate_size
        problems["moe_intermediate_size apart from intermediate_size"] = other_size
    return next((name for name, is_there in problems.items() if is_there), None)


def _has_other_rope(config: ModelConfig) -> bool:
    yarn = replace(config, rope_scaling="yarn").rope_scaling  # type: ignore[arg-type]
    return config.rope_scaling is not None and config.rope_scaling != yarn


def _named(
    tensors: Mapping[str, Tensor], config: ModelConfig, generation: Generation
) -> dict[str, Tensor]:
    """Gives the tensors under the generation's names, with q and k as it rotates them."""
    if generation is not GENERATIONS["2504"]:
        return dict(tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        linear = name.removesuffix(".lora.B.weight")
        if is_rotated(linear):
            tensor = to_pairs(tensor, config.head_dim)
        named[to_2504_name(name)] = tensor
    return named


def _notes(source: Source, generation: Generation) -> list[str]:
    """Says how the original's scripts find the file, and which settings they need that a `.pth`
    does not hold."""
    config = source.config
    kind = "_moe" if config.num_experts else ""
    notes = [
        f"a model of generation {generation.name}; the original's scripts look for "
        f"NAME_{config.hidden_size}{kind}.pth in out/"
    ]
    usual, given = _usual(config, generation), asdict(config)
    other = {name: given[name] for name in usual if given[name] != usual[name]}
    told = [f"{spell_field(name, generation)}={value!r}" for name, value in other.items()]
    told += ["inference_rope_scaling=True"] if config.rope_scaling else []
    if told:
        notes.append(
            "the original's scripts build the usual sizes: give their model configuration "
            + ", ".join(told)
        )
    if config.norm_cast_before_weight != generation.defaults["norm_cast_before_weight"]:
        notes.append("in 16 bits the original's norms round in another order than this model's")
    if source.tokenizer is not None:
        notes.append(
            "a .pth holds no tokenizer: copy tokenizer.json and tokenizer_config.json from "
            f"{source.tokenizer} into the original's model/ folder"
        )
    return notes


def _usual(config: ModelConfig, generation: Generation) -> dict[str, object]:
    """Gives the fields that the original's scripts set, for a model of this hidden size."""
    hidden = config.hidden_size
    fields: dict[str, object] = {
        "num_hidden_layers": 8,
        "vocab_size": 6400,
        "intermediate_size": default_intermediate_size(config.model_type, hidden),
        "head_dim": hidden // config.num_attention_heads,
        "tie_word_embeddings": True,
        **generation.defaults,
        **(_HEADS_3 if generation.name == "3" else {}),
    }
    if config.num_experts:
        fields |= generation.expert_defaults
        fields |= {"num_experts": 4, "moe_intermediate_size": config.intermediate_size}
        fields["n_shared_experts"] = 0 if generation.name == "3" else 1
    for name in ("norm_cast_before_weight", "model_type", "use_qk_norm"):
        del fields[name]  # which no configuration of the original has
    return fields
