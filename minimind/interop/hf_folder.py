"""Writes Hugging Face folders."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, DataError
from minimind.interop.checks import Difference, check_config, model_differences
from minimind.interop.model_card import CARD_FILE, model_card
from minimind.interop.options import ConvertOptions
from minimind.interop.own_folder import open_folder
from minimind.interop.safetensors_file import write_safetensors
from minimind.interop.source import Source, cast_finite
from minimind.model.hf_config import CONFIG_FILE, is_own_family, to_hf_config
from minimind.model.state_dict import INDEX_FILE, WEIGHTS_FILE
from minimind.runtime.devices import DTYPES

logger = logging.getLogger(__name__)

_GENERATION_FILE = "generation_config.json"
_CODE_FOLDER = Path(__file__).parent / "custom_code"
_CODE = {
    "AutoConfig": "configuration_minimind_moe.MiniMindMoeConfig",
    "AutoModel": "modeling_minimind_moe.MiniMindMoeForCausalLM",
    "AutoModelForCausalLM": "modeling_minimind_moe.MiniMindMoeForCausalLM",
}
"""The class that each of the Auto classes loads (`auto_map` in config.json)."""


def write(source: Source, folder: Path, options: ConvertOptions) -> list[str]:
    """Writes a folder that `transformers` loads: weights, configuration, tokenizer, a model card,
    and modeling code where `transformers` has no class for the model. Raises ConfigError unless
    that code is allowed."""
    notes = []
    extra: dict[str, Any] = {}
    if is_own_family(source.config):
        if not options.allow_custom_code:
            raise ConfigError(
                "--to hf: transformers has no class for experts with a shared expert or without "
                "QK norm. With --allow_custom_code the folder brings the code, and transformers "
                "loads it with trust_remote_code=True; --to minimind writes the same folder "
                "without code, for serving and training here"
            )
        extra["auto_map"] = _CODE
        for file in sorted(_CODE_FOLDER.glob("*.py")):
            shutil.copyfile(file, folder / file.name)
        notes.append("transformers loads it with trust_remote_code=True alone")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / _GENERATION_FILE, {name: getattr(source.config, name) for name in names})
    card = model_card(source, options.name, has_code=bool(extra))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    _write_model(source, folder, options, extra)
    return notes


def write_own(source: Source, folder: Path, options: ConvertOptions) -> list[str]:
    """Writes a folder that MiniMind trains and serves, whatever `transformers` has a class for."""
    _write_model(source, folder, options, {})
    return []


def _write_model(
    source: Source, folder: Path, options: ConvertOptions, extra: dict[str, Any]
) -> None:
    """Writes config.json with `extra` fields, the weights, in several files where they are larger
    than the options' limit, the tokenizer, and what lay beside them, such as a card."""
    dtype = _dtype(source, options)
    values = to_hf_config(source.config) | {"dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / CONFIG_FILE, values | extra)
    shards = _shards(source, dtype, options.max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else WEIGHTS_FILE
        shapes = {name: source.tensors.shape(name) for name in names}
        tensors = (
            (name, cast_finite(source.tensors[name], dtype, f"{source.path}: {name}"))
            for name in names
        )
        write_safetensors(folder / file, shapes, dtype, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size = sum(_num_bytes(source, name, dtype) for name in source.tensors)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index)
    for file in source.beside:  # the source's card replaces the new one
        shutil.copy2(file, folder / file.name)
    write_tokenizer(source, folder)


def _dtype(source: Source, options: ConvertOptions) -> torch.dtype:
    if options.dtype:
        return DTYPES[options.dtype]
    return source.dtype if source.dtype in DTYPES.values() else torch.float32


def _num_bytes(source: Source, name: str, dtype: torch.dtype) -> int:
    return torch.Size(source.tensors.shape(name)).numel() * dtype.itemsize


def _shards(source: Source, dtype: torch.dtype, max_bytes: int) -> list[list[str]]:
    """Divides the tensors, in order, among files of at most `max_bytes`; a larger tensor gets a
    file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in source.tensors:
        size = _num_bytes(source, name, dtype)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(source: Source, folder: Path) -> None:
    """Writes tokenizer files with which `transformers` begins a text as training does; those of
    earlier versions left out bos. A tokenizer that cannot be read is copied unchanged."""
    if source.tokenizer is None:
        return
    try:
        Tokenizer.load(source.tokenizer).save(folder)
    except DataError as error:
        logger.warning("%s; the tokenizer is copied as it is", error)
        for file in source.tokenizer.iterdir():
            if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
                shutil.copy2(file, folder / file.name)


def check(source: Source, folder: Path, options: ConvertOptions) -> list[Difference]:
    """Reads the folder back: each weight must be the source's, rounded to its dtype, bit by bit,
    and the logits of the fixed prompts equal where the dtype is kept."""
    result = open_folder(folder, ConvertOptions())
    check_config(source, result)
    dtype = _dtype(source, options)
    return model_differences(
        source,
        result,
        lambda name: source.tensors[name].to(dtype),
        is_exact=dtype == source.dtype,
    )
