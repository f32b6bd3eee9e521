"""Finds model and adapter folders, and makes complete models of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.config.spelling import did_you_mean_file
from minimind.errors import CheckpointError
from minimind.lora.adapter import LoraPart, merge_adapter
from minimind.lora.peft_format import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    adapts_vocabulary,
    read_adapter,
    read_header,
    read_peft_config,
)
from minimind.model.hf_config import CONFIG_FILE, load_hf_config
from minimind.model.state_dict import hash_weights, load_hf_folder
from minimind.runtime.digests import hash_files

LATEST, BEST = "latest", "best"
"""Names of the links in a run's `checkpoints` folder to one of its checkpoints."""
META_FILE = "meta.json"
"""The file of a checkpoint that describes its run; it lies beside the model's folder."""
_MAX_ADAPTERS = 16
"""The most adapters that may lie over one another."""


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
    if path.is_file() or (path.is_dir() and any(path.glob("*.pth"))):
        output = path.with_suffix("") if path.is_file() else f"{path}-converted"
        raise CheckpointError(
            f"{path}: not a run's folder, a checkpoint in it, or a Hugging Face folder "
            "(config.json and *.safetensors). Convert a .pth of the original or another file of "
            f"weights to such a folder first: minimind convert --input {path} --to minimind "
            f"--output {output}"
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
    return config, merge_adapter(config, weights, load_adapter(folder, config), str(folder))


def load_folder_config(folder: Path) -> ModelConfig:
    """Loads only the configuration. Raises the same errors about a base as `load_model_folder`."""
    if not is_adapter_folder(folder):
        return load_hf_config(folder)
    base = find_base(folder)
    has_own = (folder / CONFIG_FILE).exists()  # PEFT writes none
    config = load_hf_config(folder) if has_own else load_folder_config(base.folder)
    return replace(config, tie_word_embeddings=False) if adapts_vocabulary(folder) else config


def load_adapter(folder: Path, config: ModelConfig) -> dict[str, LoraPart]:
    """Loads an adapter for a model of this configuration. Raises CheckpointError where it holds
    more than pairs of A and B, or another embedding or output head than its base's."""
    adapter, copies = read_adapter(folder, config)
    if copies:
        _, weights = load_model_folder(find_base(folder).folder)
        embedding = weights["embed_tokens.weight"]
        for name, copy in copies.items():
            base = weights.get(name.removeprefix("model."), embedding)
            if base.shape != copy.shape or not torch.equal(base.to(copy.dtype), copy):
                raise CheckpointError(
                    f"{folder}: holds a {name} of {list(copy.shape)} of its own, other than its "
                    "base's: merge the adapter with PEFT (merge_and_unload) and give that folder"
                )
    return adapter


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
    written = read_peft_config(folder).get("base_model_name_or_path") or ""
    header = read_header(folder)
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
