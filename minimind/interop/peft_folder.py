"""Writes an adapter as PEFT and `transformers` 5 load it, without a warning."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import ConfigError
from minimind.interop.checks import Difference, adapter_difference
from minimind.interop.hf_folder import write_tokenizer
from minimind.interop.options import ConvertOptions
from minimind.interop.source import Source, SourceAdapter, cast_finite
from minimind.lora.adapter import EMBEDDING, Adapter, LoraPart
from minimind.lora.folder import BaseModel, is_model_folder
from minimind.lora.peft_experts import DOWN, GATE_UP, join_experts, join_linears, joined_rank
from minimind.lora.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    PREFIX,
    base_header,
    read_adapter,
    to_peft_config,
)
from minimind.model.hf_config import to_hf_config
from minimind.model.state_dict import linear_parts, write_tensors
from minimind.runtime.devices import DTYPES

_STACKS = {GATE_UP: ("gate_proj", "up_proj"), DOWN: (DOWN,)}


def write(source: Source, folder: Path, options: ConvertOptions) -> list[str]:
    """Writes into the folder, which exists and is empty. Raises ConfigError where the source is no
    adapter, or its model no folder; OSError."""
    adapter = source.adapter
    if adapter is None:
        raise ConfigError(f"{source.path}: a whole model; --to peft writes adapters alone")
    if not is_model_folder(adapter.base) and options.base_name is None:
        raise ConfigError(
            f"{adapter.base}: PEFT cannot load the adapter's model from this file. Convert it with "
            "--to hf and give that folder as --base, or say what the adapter calls it with "
            "--base_name"
        )
    dtype = DTYPES[options.dtype or "fp32"]
    tensors: dict[str, Tensor] = {}
    base_name = options.base_name or adapter.base_name
    parts, values = _arrange(source.config, adapter.parts, base_name)
    for name, part in parts.items():
        pair = {f"{name}.lora_A.weight": part.a_RI, f"{name}.lora_B.weight": part.b_OR}
        if name == EMBEDDING:
            # PEFT adds (B·A)ᵀ to an embedding.
            pair = {f"{name}.lora_embedding_A": part.b_OR.T}
            pair |= {f"{name}.lora_embedding_B": part.a_RI.T}
        for key, tensor in pair.items():
            cast = cast_finite(tensor.detach().cpu(), dtype, f"{source.path}: {key}")
            tensors[PREFIX + key] = cast.contiguous()
    has_parameters = "target_parameters" in values
    if not has_parameters:
        values["lora_dropout"] = adapter.dropout
    header = {"format": "pt"}
    if is_model_folder(adapter.base):
        header |= base_header(folder, BaseModel.of(adapter.base))
    text = json.dumps(values, indent=2) + "\n"
    (folder / ADAPTER_CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tensors(folder / ADAPTER_WEIGHTS_FILE, tensors, header)
    write_tokenizer(source, folder)
    return _notes(adapter, base_name, has_parameters)


def check(source: Source, folder: Path, options: ConvertOptions) -> list[Difference]:
    """Reads the adapter back and compares what it adds to each linear."""
    assert source.adapter is not None
    written, _ = read_adapter(folder, source.config)
    return [adapter_difference(source.adapter.parts, written, options.dtype)]


def _arrange(
    config: ModelConfig, adapter: Adapter, base_name: str
) -> tuple[dict[str, LoraPart], dict[str, object]]:
    """Gives the adapter by the names of PEFT's modules, and PEFT's configuration. In a Qwen3-MoE
    model of transformers 5 everything in a feed-forward layer is adapted as a parameter and not as
    a module. PEFT finds no rank pattern for parameters, so all of them get one rank and one scale,
    and the patterns name the modules."""
    in_mlp = {name: part for name, part in adapter.items() if ".mlp." in name}
    values = to_peft_config(config, adapter, base_name)
    if to_hf_config(config)["model_type"] != "qwen3_moe" or not in_mlp:
        return dict(adapter), values
    stacks, others = _group(config, in_mlp)
    rank = max(
        *(joined_rank(of_expert) for stack in stacks.values() for of_expert in stack),
        *(part.rank for part in others.values()),
        1,
    )
    scale = Counter(part.scale for part in in_mlp.values()).most_common(1)[0][0]
    parts = {name: part for name, part in adapter.items() if name not in in_mlp}
    modules = sorted(parts)
    for name, part in others.items():
        parts[name] = join_linears([part], rank, scale)
    for stack, of_experts in stacks.items():
        experts, _, kind = stack.rpartition(".")
        inner = kind == GATE_UP and f"{experts}.{DOWN}" in stacks
        parts[f"{experts}.base_layer" if inner else experts] = join_experts(of_experts, rank, scale)
    values |= {"r": rank, "lora_alpha": scale * rank, "target_modules": modules}
    values["target_parameters"] = sorted([*stacks, *(f"{name}.weight" for name in others)])
    for key, field in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
        usual = {"rank": rank, "alpha": scale * rank}[field]
        of_modules = {name: getattr(parts[name], field) for name in modules}
        values[key] = {name: value for name, value in of_modules.items() if value != usual}
    return parts, values


def _group(
    config: ModelConfig, in_mlp: Mapping[str, LoraPart]
) -> tuple[dict[str, list[list[LoraPart]]], dict[str, LoraPart]]:
    """Gives the adapters of each stack, expert by expert, and those of other linears. A linear of a
    stack without an adapter gets one of rank 0."""
    shapes = {part.name: part for parts in linear_parts(config).values() for part in parts}
    kinds = {linear: kind for kind, linears in _STACKS.items() for linear in linears}
    others: dict[str, LoraPart] = {}
    stacks: dict[str, list[list[LoraPart]]] = defaultdict(list)
    for name, part in in_mlp.items():
        experts, _, rest = name.partition(".experts.")
        if not rest:
            others[name] = part
            continue
        stack = f"{experts}.experts.{kinds[rest.partition('.')[2]]}"
        if stack in stacks:
            continue
        for e in range(config.num_experts):
            linears = [f"{experts}.experts.{e}.{x}" for x in _STACKS[stack.rpartition(".")[2]]]
            sizes = [(shapes[x].num_rows, shapes[x].num_columns) for x in linears]
            pairs = zip(linears, sizes, strict=True)
            stacks[stack].append([in_mlp.get(x) or LoraPart.empty(*size) for x, size in pairs])
    return stacks, others


def _notes(adapter: SourceAdapter, base_name: str, has_parameters: bool) -> list[str]:
    notes = [f"the adapter alone; its model is {base_name}"]
    if Path(base_name).is_absolute():
        notes.append("that is a path of this machine: --base_name gives the model another name")
    if has_parameters:
        notes.append("adapters of experts are in the form of transformers 5; PEFT 0.21 was tried")
        if adapter.dropout:
            notes.append(f"lora_dropout {adapter.dropout} is left out: PEFT allows none there")
    return notes
