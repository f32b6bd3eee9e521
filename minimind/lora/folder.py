"""Reads and writes adapter folders in PEFT's format, and makes complete models of them.

adapter_config.json          PEFT's own keys; base_model_name_or_path is an absolute path
adapter_model.safetensors    base_model.model.{linear}.lora_{A,B}.weight; its header also holds
                             the base's relative path and fingerprint
config.json                  of the model that base and adapter make together
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimind.config.json_file import check_regular, load_json
from minimind.config.model import ModelConfig
from minimind.config.spelling import did_you_mean_file
from minimind.errors import CheckpointError
from minimind.lora.adapter import Adapter, LoraPart, merge_adapter
from minimind.lora.alphas import read_alphas
from minimind.model.hf_config import CONFIG_FILE, load_hf_config, to_hf_config
from minimind.model.state_dict import (
    hash_files,
    hash_weights,
    linear_parts,
    load_hf_folder,
    write_tensors,
)

LATEST, BEST = "latest", "best"
"""Names of the links in a run's `checkpoints` folder to one of its checkpoints."""
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MAX_ADAPTERS = 16
"""The most adapters that may lie over one another."""
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication")
"""PEFT's options that change the meaning of A and B, or add other weights."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Names the base model that an adapter was trained with."""

    folder: Path
    fingerprint: str
    """Identifies the base's weights: on other weights an adapter would compute nonsense without an
    error."""

    @classmethod
    def of(cls, folder: Path) -> BaseModel:
        return cls(folder.resolve(), fingerprint(folder))


def is_model_folder(folder: Path) -> bool:
    return os.path.exists(folder / CONFIG_FILE) or is_adapter_folder(folder)


def is_adapter_folder(folder: Path) -> bool:
    return os.path.exists(folder / ADAPTER_CONFIG_FILE)


def find_model_folder(path: Path) -> Path:
    """Finds the model or adapter folder that `path` means: a run's folder, one checkpoint in it, or
    the folder itself. `load_model_folder` reads the result."""
    for folder in (path, *(path / "checkpoints" / x for x in (BEST, LATEST))):
        for candidate in (folder, folder / "model", folder / "adapter"):
            if is_model_folder(candidate):
                return candidate
    if path.is_file():
        raise CheckpointError(
            f"{path}: a file, where a folder is expected: a run's, a checkpoint in it, or a "
            "Hugging Face folder (config.json and *.safetensors). A .pth of the original or "
            "another single file of weights has to be converted to such a folder first"
        )
    raise CheckpointError(
        f"{path}: neither a run's folder, nor a checkpoint, nor a Hugging Face folder, nor an "
        f"adapter's (no config.json or adapter_config.json in it){did_you_mean_file(path)}"
    )


def load_model_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Loads the configuration and named parameters of a Hugging Face folder, or of an adapter
    folder with the adapter merged in fp32. Raises CheckpointError where an adapter's base is
    missing or has changed."""
    if not is_adapter_folder(folder):
        return load_hf_folder(folder)
    _, weights = load_model_folder(find_base(folder).folder)
    config = load_folder_config(folder)
    return config, merge_adapter(config, weights, load_adapter(folder), str(folder))


def load_folder_config(folder: Path) -> ModelConfig:
    """Loads only the configuration. Raises the same errors about a base as `load_model_folder`."""
    if is_adapter_folder(folder):
        base = find_base(folder)
        if not (folder / CONFIG_FILE).exists():  # PEFT writes none
            return load_folder_config(base.folder)
    return load_hf_config(folder)


def fingerprint(folder: Path, above: tuple[Path, ...] = ()) -> str:
    """Identifies the weights of a model folder; for an adapter, together with its base's."""
    if not is_adapter_folder(folder):
        return hash_weights(folder)
    base = find_base(folder, above)
    return f"{base.fingerprint}+{hash_files([folder / ADAPTER_WEIGHTS_FILE])}"


def find_base(folder: Path, above: tuple[Path, ...] = ()) -> BaseModel:
    """Finds an adapter's base model: at its path relative to the adapter's folder, so that a folder
    of runs can be moved as a whole, or at the absolute path in the configuration. `above` are the
    adapters that lie over it. Raises CheckpointError where it is missing or has changed, and for
    adapters that are based on one another in a circle."""
    folder = folder.resolve()
    above = (*above, folder)
    if folder in above[:-1] or len(above) > _MAX_ADAPTERS:
        raise CheckpointError(
            f"{folder}: an adapter based on itself, or on more than {_MAX_ADAPTERS} others: "
            f"{' on '.join(map(str, above[:4]))}. Write the folder of a whole model as "
            f"base_model_name_or_path into {ADAPTER_CONFIG_FILE}"
        )
    written = _read_config(folder).get("base_model_name_or_path") or ""
    header = _read_header(folder)
    wanted = header.get("base_fingerprint")
    places = [Path(written)] if written else []
    if relative := header.get("base_relative"):
        places.insert(0, Path(os.path.normpath(folder / relative)))
    problems = []
    for place in dict.fromkeys(places):
        if not is_model_folder(place):
            problems.append(f"{place} is no model folder")
        elif (found := fingerprint(place, above)) == (wanted or found):
            return BaseModel(place, found)
        else:
            problems.append(f"{place} holds other weights than it was trained beside")
    raise CheckpointError(
        f"{folder} is an adapter, and the model it belongs to was not found: "
        f"{'; '.join(problems) or 'it names none'}. Put that model back, or write its folder as "
        f"base_model_name_or_path into {ADAPTER_CONFIG_FILE}"
    )


def tokenizer_folder(folder: Path) -> Path:
    """Gives the folder that holds a model folder's tokenizer: the folder itself, or the base of an
    adapter that has none, as PEFT's have. Raises CheckpointError where the base is missing."""
    while is_adapter_folder(folder) and not (folder / "tokenizer.json").is_file():
        folder = find_base(folder).folder
    return folder


def save_adapter(folder: Path, config: ModelConfig, adapter: Adapter, base: BaseModel) -> None:
    """Writes an adapter in fp32, and the configuration of the model that base and adapter make."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, part in adapter.items():
        for letter, tensor in (("A", part.a_RI), ("B", part.b_OR)):
            full = tensor.detach().to("cpu", torch.float32).contiguous()
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = full
    header = {
        "format": "pt",
        "base_relative": os.path.relpath(base.folder, folder.resolve()),
        "base_fingerprint": base.fingerprint,
    }
    write_tensors(folder / ADAPTER_WEIGHTS_FILE, tensors, header)
    for name, values in (
        (ADAPTER_CONFIG_FILE, _to_peft_config(config, adapter, base.folder)),
        (CONFIG_FILE, to_hf_config(config)),
    ):
        text = json.dumps(values, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _to_peft_config(config: ModelConfig, adapter: Adapter, base: Path) -> dict[str, Any]:
    rank = Counter(part.rank for part in adapter.values()).most_common(1)[0][0]
    alpha = Counter(part.alpha for part in adapter.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
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


def load_adapter(folder: Path) -> dict[str, LoraPart]:
    """Reads an adapter that `save_adapter` or PEFT wrote. Raises CheckpointError where it holds
    more than pairs of A and B."""
    values = _read_config(folder)
    path = folder / ADAPTER_CONFIG_FILE
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {values.get('peft_type')!r}, not 'LORA'")
    if values.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {values['bias']!r}; models here have none")
    if given := [name for name in _UNSUPPORTED if values.get(name)]:
        raise CheckpointError(f"{path}: {given[0]} is not supported")
    tensors = _read_tensors(folder)
    adapter: dict[str, LoraPart] = {}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key in sorted(tensors):
        found = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_A\.weight", key)
        if not found:
            continue
        name = found[1]
        a_RI, b_OR = tensors.pop(key), tensors.pop(f"{_PREFIX}{name}.lora_B.weight", None)
        if b_OR is None or a_RI.ndim != 2 or b_OR.ndim != 2 or len(a_RI) != b_OR.shape[1]:
            raise CheckpointError(f"{folder}: lora_A and lora_B of {name} are no pair")
        if not len(a_RI):
            raise CheckpointError(f"{folder}: the rank of {name} is 0; it must be at least 1")
        pairs[name] = (a_RI, b_OR)
    alphas = read_alphas(values, list(pairs), str(path))
    for name, (a_RI, b_OR) in pairs.items():
        # Rank-stabilised scaling, alpha/sqrt(r), as the alpha of the usual rule.
        scale = math.sqrt(len(a_RI)) if values.get("use_rslora") else 1.0
        adapter[name] = LoraPart(a_RI, b_OR, alphas[name] * scale)
    if tensors or not adapter:
        raise CheckpointError(
            f"{folder}: {', '.join(sorted(tensors)[:3]) or 'no tensor'}: pairs of "
            f"{_PREFIX}LINEAR.lora_A.weight and .lora_B.weight are what an adapter holds"
        )
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
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


def _read_header(folder: Path) -> dict[str, str]:
    with _open_weights(folder) as file:
        return file.metadata() or {}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    with _open_weights(folder) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_weights(folder: Path) -> Any:
    path = folder / ADAPTER_WEIGHTS_FILE
    try:
        check_regular(path)
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None
