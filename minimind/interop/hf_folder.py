"""Writes Hugging Face folders."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.interop.checks import Difference, logits_difference, weights_difference
from minimind.interop.options import ConvertOptions
from minimind.interop.own_folder import open_folder
from minimind.interop.safetensors_file import write_safetensors
from minimind.interop.source import Source, check_finite
from minimind.model.hf_config import CONFIG_FILE, to_hf_config
from minimind.model.state_dict import WEIGHTS_FILE
from minimind.runtime.devices import DTYPES

logger = logging.getLogger(__name__)


def write(source: Source, folder: Path, options: ConvertOptions) -> list[str]:
    """Writes the folder, which is there and empty: config.json, the weights, the tokenizer and the
    source's other files. Gives notes for the user. Raises OSError, CheckpointError, ConfigError."""
    dtype = DTYPES[options.dtype] if options.dtype else source.dtype
    values = to_hf_config(source.config) | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shapes = {name: source.tensors.shape(name) for name in source.tensors}
    write_safetensors(
        folder / WEIGHTS_FILE, shapes, dtype, _cast_tensors(source, dtype), {"format": "pt"}
    )
    for file in source.beside:
        shutil.copy2(file, folder / file.name)
    write_tokenizer(source, folder)
    return []


def _cast_tensors(source: Source, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name in source.tensors:
        tensor = source.tensors[name].to(dtype)
        check_finite(tensor, f"{source.path}: {name} in {dtype}")
        yield name, tensor


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
    """Reads the folder back: each weight must be the source's, rounded to its dtype, bit by bit.
    The logits of the fixed prompts are compared too where the dtype is kept."""
    result = open_folder(folder, ConvertOptions())
    weights = weights_difference(source, result, lambda tensor: tensor.to(result.dtype))
    weights.check()
    allowed = 0.0 if result.dtype == source.dtype else float("inf")
    return [weights, logits_difference(source, result, allowed)]
