"""Reads and writes adapters in PEFT's format.

adapter_config.json          PEFT's own keys; base_model_name_or_path is an absolute path
adapter_model.safetensors    base_model.model.{linear}.lora_{A,B}.weight; its header also holds
                             the base's relative path and fingerprint
config.json                  of the model that base and adapter make together

PEFT itself may also write adapters of the embedding and the output head, and one adapter for all
experts of a layer (peft_experts.py).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from minimind.config.json_file import load_json
from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.lora.adapter import EMBEDDING, HEAD, Adapter, LoraPart
from minimind.lora.alphas import read_alphas
from minimind.lora.peft_experts import find_stack, split_experts
from minimind.model.hf_config import CONFIG_FILE, to_hf_config
from minimind.model.state_dict import linear_parts, readable_safetensors, write_tensors

if TYPE_CHECKING:
    from minimind.lora.folder import BaseModel

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""PEFT's options that change the meaning of A and B, or add other weights."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""The beginnings of those values of PEFT's init_lora_weights that change the base's weights too."""


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Reads adapter_config.json. Raises CheckpointError."""
    path = folder / ADAPTER_CONFIG_FILE
    try:
        values = load_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not the configuration of an adapter")
    if not isinstance(base := values.get("base_model_name_or_path") or "", str):
        raise CheckpointError(f"{path}: base_model_name_or_path is {base!r:.60}, which is no path")
    return values


def read_header(folder: Path) -> dict[str, str]:
    """Reads what the weight file's header says besides the tensors."""
    with _open_weights(folder) as file:
        return file.metadata() or {}


def adapts_vocabulary(folder: Path) -> bool:
    """Tells whether the adapter changes the embedding or the output head, and so makes two matrices
    of one that they share."""
    with _open_weights(folder) as file:
        return any(
            key.startswith((f"{PREFIX}{EMBEDDING}.lora_", f"{PREFIX}{HEAD}.lora_"))
            for key in file.keys()  # noqa: SIM118
        )


def read_adapter(
    folder: Path, config: ModelConfig
) -> tuple[dict[str, LoraPart], dict[str, Tensor]]:
    """Reads an adapter for a model of this configuration that `save_adapter` or PEFT wrote, and the
    copies beside it of the base's embedding and output head, by their names. Raises CheckpointError
    where the adapter holds more than pairs of A and B."""
    values = read_peft_config(folder)
    _check_supported(values, folder / ADAPTER_CONFIG_FILE)
    with _open_weights(folder) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    adapter: dict[str, LoraPart] = {}
    pairs: list[tuple[str, str | None, Tensor, Tensor]] = []
    copies: dict[str, Tensor] = {}
    for key in sorted(tensors):
        name = key.removeprefix(PREFIX)
        if name.startswith((f"{EMBEDDING}.", f"{HEAD}.")) and ".lora_" not in name:
            copies[name.replace(".base_layer", "")] = tensors.pop(key)
            continue
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.(lora_(?:embedding_)?)A(\.weight)?", key)
        if not found:
            continue
        name, kind, ending = found[1], found[2], found[3] or ""
        a_RI, b_OR = tensors.pop(key), tensors.pop(f"{PREFIX}{name}.{kind}B{ending}", None)
        if b_OR is None or a_RI.ndim != 2 or b_OR.ndim != 2 or len(a_RI) != b_OR.shape[1]:
            raise CheckpointError(f"{folder}: lora_A and lora_B of {name} are no pair")
        if kind == "lora_embedding_":
            # PEFT adds (B·A)ᵀ to an embedding.
            a_RI, b_OR = b_OR.T.contiguous(), a_RI.T.contiguous()
        if not len(a_RI):
            raise CheckpointError(f"{folder}: the rank of {name} is 0; it must be at least 1")
        pairs.append((name, find_stack(name, a_RI, b_OR, config, str(folder)), a_RI, b_OR))
    origin = str(folder / ADAPTER_CONFIG_FILE)
    names = [_matched_name(values, stack or name) for name, stack, _, _ in pairs]
    alphas = read_alphas(values, names, origin)
    for matched, (name, stack, a_RI, b_OR) in zip(names, pairs, strict=True):
        rank = len(a_RI) if stack is None else len(a_RI) // config.num_experts
        # Rank-stabilised scaling, alpha/sqrt(r), as the alpha that has the same effect.
        alpha = alphas[matched] * (math.sqrt(rank) if values.get("use_rslora") else 1.0)
        if stack is None:
            adapter[name] = LoraPart(a_RI, b_OR, alpha)
        else:
            adapter |= split_experts(stack, a_RI, b_OR, config, alpha)
    if tensors or not adapter:
        raise CheckpointError(
            f"{folder}: {', '.join(sorted(tensors)[:3]) or 'no tensor'}: pairs of "
            f"{PREFIX}LINEAR.lora_A.weight and .lora_B.weight are what an adapter holds"
        )
    return adapter, copies


def _check_supported(values: Mapping[str, Any], path: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {values.get('peft_type')!r}, not 'LORA'")
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {values['bias']!r}; models here have none")
    if given := [name for name in _UNSUPPORTED if values.get(name)]:
        raise CheckpointError(f"{path}: {given[0]} is not supported")
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {init!r}, which changed the base's weights too: save "
            "the adapter with PEFT's path_initial_model_for_weight_conversion, or merge it there"
        )
    if values.get("ensure_weight_tying"):
        raise CheckpointError(f"{path}: ensure_weight_tying is not supported")


def _matched_name(values: Mapping[str, Any], name: str) -> str:
    """Gives the name that PEFT's patterns are matched with: a linear's, or its weight's if PEFT
    adapts it as a parameter."""
    parameters = values.get("target_parameters") or ()
    is_parameter = any(f".{name}.weight".endswith(f".{one}") for one in parameters)
    return f"{name}.weight" if is_parameter else name


def save_adapter(folder: Path, config: ModelConfig, adapter: Adapter, base: BaseModel) -> None:
    """Writes an adapter in fp32, and the configuration of the model that base and adapter make."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, part in adapter.items():
        for letter, tensor in (("A", part.a_RI), ("B", part.b_OR)):
            full = tensor.detach().to("cpu", torch.float32).contiguous()
            tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = full
    header = {"format": "pt"} | base_header(folder, base)
    write_tensors(folder / ADAPTER_WEIGHTS_FILE, tensors, header)
    for name, values in (
        (ADAPTER_CONFIG_FILE, to_peft_config(config, adapter, str(base.folder))),
        (CONFIG_FILE, to_hf_config(config)),
    ):
        text = json.dumps(values, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def base_header(folder: Path, base: BaseModel) -> dict[str, str]:
    """Gives the header entries about the base for the adapter's weight file in `folder`: the base's
    relative path, by which it is found after both folders were moved, and its fingerprint."""
    return {
        "base_relative": os.path.relpath(base.folder, folder.resolve()),
        "base_fingerprint": base.fingerprint,
    }


def to_peft_config(config: ModelConfig, adapter: Adapter, base: str) -> dict[str, Any]:
    """Gives the content of adapter_config.json for an adapter that is written linear by linear."""
    rank = Counter(part.rank for part in adapter.values()).most_common(1)[0][0]
    alpha = Counter(part.alpha for part in adapter.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": _target_modules(config, adapter),
        "rank_pattern": {n: part.rank for n, part in adapter.items() if part.rank != rank},
        "alpha_pattern": {n: part.alpha for n, part in adapter.items() if part.alpha != alpha},
    }


def _target_modules(config: ModelConfig, adapter: Adapter) -> list[str]:
    """Gives PEFT's target_modules. PEFT applies an entry to every module whose name ends in it, so
    it is `q_proj` where all linears of that name have an adapter, else the full names."""
    parts = (part for parts in linear_parts(config).values() for part in parts)
    left_out = {_leaf(part.name) for part in parts if part.name not in adapter}
    return sorted({name if _leaf(name) in left_out else _leaf(name) for name in adapter})


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _open_weights(folder: Path) -> Any:
    path = folder / ADAPTER_WEIGHTS_FILE
    with readable_safetensors(path):
        return safe_open(path, framework="pt")
