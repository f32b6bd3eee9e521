"""Reads what MiniMind writes: a run's folder, a checkpoint, a Hugging Face folder, an adapter."""

from __future__ import annotations

from pathlib import Path

import torch

from minimind.data.same_tokens import has_tokenizer
from minimind.errors import CheckpointError
from minimind.interop.options import ConvertOptions
from minimind.interop.safetensors_file import lazy_tensors
from minimind.interop.source import LazyTensor, LazyTensors, Source, check_tensors
from minimind.interop.training_record import read_training
from minimind.lora.adapter import LoraPart
from minimind.lora.folder import (
    ADAPTER_CONFIG_FILE,
    find_base,
    find_model_folder,
    is_adapter_folder,
    load_adapter,
    load_folder_config,
    tokenizer_folder,
)
from minimind.model.hf_config import CONFIG_FILE, is_known_config
from minimind.model.state_dict import weight_files

_NOT_BESIDE = (".safetensors", ".bin", ".pth", ".pt", ".index.json", ".py", ".gguf")
"""Endings of weights in any format, of their index, and of code."""


def detect(path: Path) -> bool:
    """Tells whether a model or an adapter that MiniMind can train is found at `path`."""
    try:
        folder = find_model_folder(path)
    except CheckpointError:
        return False
    return is_adapter_folder(folder) or is_known_config(folder)


def open_folder(path: Path, options: ConvertOptions) -> Source:
    """Opens a run's folder (its best checkpoint, or its latest), one checkpoint, a Hugging Face
    folder, or an adapter's folder, which is merged into its base tensor by tensor in fp32. Raises
    CheckpointError."""
    folder = find_model_folder(path)
    config = load_folder_config(folder)
    tensors = check_tensors(config, _tensors(folder))
    notes = []
    if folder != path:
        notes.append(f"read from {folder}")
    if is_adapter_folder(folder):
        notes.append(f"the adapter was merged into its base, {find_base(folder).folder}")
    tokenizer = options.tokenizer or tokenizer_folder(folder)
    return Source(
        path=folder,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer if has_tokenizer(tokenizer) else None,
        notes=notes,
        training=read_training(folder),
        beside=tuple(sorted(file for file in folder.iterdir() if _is_beside(file))),
    )


def _is_beside(file: Path) -> bool:
    ours = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    return file.is_file() and file.name not in ours and not file.name.endswith(_NOT_BESIDE)


def _tensors(folder: Path) -> LazyTensors:
    if is_adapter_folder(folder):
        base = _tensors(find_base(folder).folder)
        return merged_tensors(base, load_adapter(folder), str(folder))
    entries: dict[str, LazyTensor] = {}
    for file in weight_files(folder):
        entries |= lazy_tensors(file)
    return LazyTensors(entries, str(folder))


def merged_tensors(base: LazyTensors, adapter: dict[str, LoraPart], origin: str) -> LazyTensors:
    """Gives the tensors of `base`, with W + alpha/r · B·A in fp32 for those that the adapter
    changes. Raises CheckpointError where the adapter is for another model."""
    entries = dict(base.entries)
    for name, part in adapter.items():
        weight = f"{name}.weight"
        shape = (len(part.b_OR), part.a_RI.shape[1])
        if weight not in entries:
            raise CheckpointError(
                f"{origin}: the adapter is for {name}, which this model does not have"
            )
        if entries[weight].shape != shape:
            raise CheckpointError(
                f"{origin}: the adapter of {name} is for a matrix of {list(shape)}, but this "
                f"model's is {list(entries[weight].shape)}"
            )

        def read(weight: str = weight, part: LoraPart = part) -> torch.Tensor:
            return part.delta().add_(base[weight].float())

        entries[weight] = LazyTensor(shape, torch.float32, read)
    return LazyTensors(entries, origin)
