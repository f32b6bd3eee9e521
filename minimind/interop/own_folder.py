"""Reads what MiniMind writes: a run's folder, a checkpoint, a Hugging Face folder, an adapter."""

from __future__ import annotations

from pathlib import Path

from minimind.config.model import ModelConfig
from minimind.data.same_tokens import has_tokenizer
from minimind.errors import CheckpointError
from minimind.interop.merging import merged_tensors
from minimind.interop.options import ConvertOptions
from minimind.interop.safetensors_file import lazy_tensors
from minimind.interop.source import (
    LazyTensor,
    LazyTensors,
    Source,
    SourceAdapter,
    check_tensors,
)
from minimind.interop.training_record import read_training
from minimind.lora.folder import (
    find_base,
    find_model_folder,
    is_adapter_folder,
    load_adapter,
    load_folder_config,
    tokenizer_folder,
)
from minimind.lora.peft_format import ADAPTER_CONFIG_FILE, read_peft_config
from minimind.model.hf_config import CONFIG_FILE
from minimind.model.state_dict import weight_files

_NOT_BESIDE = (".safetensors", ".bin", ".pth", ".pt", ".index.json", ".py", ".gguf")
"""Endings of weights in any format, of their index, and of code."""


def detect(path: Path) -> bool:
    """Tells whether a model's or an adapter's folder is found at `path`."""
    try:
        find_model_folder(path)
    except CheckpointError:
        return False
    return True


def open_folder(path: Path, options: ConvertOptions) -> Source:
    """Opens a run's folder (its best checkpoint, or its latest), one checkpoint, a Hugging Face
    folder, or an adapter's folder, which is merged into its base tensor by tensor in fp32. Raises
    CheckpointError."""
    folder = find_model_folder(path)
    options.check_only_tokenizer(folder)
    config, tensors, adapter = _read(folder)
    notes = [f"read from {folder}"] if folder != path else []
    if adapter is not None:
        notes.append(f"the adapter was merged into its base, {adapter.base}")
    tokenizer = options.tokenizer or tokenizer_folder(folder)
    return Source(
        path=folder,
        config=config,
        tensors=check_tensors(config, tensors),
        tokenizer=tokenizer if has_tokenizer(tokenizer) else None,
        notes=notes,
        training=read_training(folder),
        beside=tuple(sorted(file for file in folder.iterdir() if _is_beside(file))),
        adapter=adapter,
    )


def _is_beside(file: Path) -> bool:
    ours = (CONFIG_FILE, ADAPTER_CONFIG_FILE)
    return file.is_file() and file.name not in ours and not file.name.endswith(_NOT_BESIDE)


def _read(folder: Path) -> tuple[ModelConfig, LazyTensors, SourceAdapter | None]:
    """Reads a model's folder, or an adapter's over its base, which may be an adapter's too."""
    config = load_folder_config(folder)
    if is_adapter_folder(folder):
        adapter = _read_adapter(folder, config)
        _, base, _ = _read(adapter.base)
        return config, merged_tensors(config, base, adapter.parts, str(folder)), adapter
    entries: dict[str, LazyTensor] = {}
    for file in weight_files(folder):
        entries |= lazy_tensors(file)
    return config, LazyTensors(entries, str(folder)), None


def _read_adapter(folder: Path, config: ModelConfig) -> SourceAdapter:
    values, base = read_peft_config(folder), find_base(folder).folder
    dropout = values.get("lora_dropout")
    return SourceAdapter(
        parts=load_adapter(folder, config),
        base=base,
        base_name=str(values.get("base_model_name_or_path") or base),
        dropout=float(dropout) if isinstance(dropout, int | float) else 0.0,
    )
