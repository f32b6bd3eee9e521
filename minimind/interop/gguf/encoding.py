"""Rounds weights to the types of a GGUF file, and reads them back."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimind.errors import CheckpointError, ConfigError

_BY_LLAMA_CPP = ("q4_k_m",)
CHOICES = ("f32", "f16", "bf16", "q8_0", "q4_0", *_BY_LLAMA_CPP)
"""Lists what `--quantize` takes: the type of most weights, in lower case."""
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def import_gguf() -> Any:
    """Gives the package `gguf`. Raises ConfigError where it is not installed."""
    # It logs its temporary file and the byte order, which users do not need to know.
    logging.getLogger("gguf").setLevel(logging.WARNING)
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError(
            f"GGUF files need the package gguf ({error}): pip install 'minimind[interop]'"
        ) from None


def main_type(quantize: str | None, dtype: torch.dtype) -> str:
    """Gives the type of most weights: what `--quantize` says, else the one that holds the source's
    `dtype` exactly. Raises ConfigError for a quantization that is left to llama.cpp."""
    if quantize is None:
        return next((name for name, known in _DTYPES.items() if known == dtype), "F32")
    if quantize in _BY_LLAMA_CPP:
        raise ConfigError(
            f"--quantize {quantize}: the package gguf cannot write this type. Write --quantize "
            f"f32 or bf16, and have llama.cpp do it: llama-quantize MODEL.gguf "
            f"MODEL-{quantize}.gguf {quantize.upper()}"
        )
    return quantize.upper()


def type_of(name: str, shape: tuple[int, ...], is_fp32: bool, main: str) -> str:
    """Gives the type of one tensor. Blocks are 32 neighbours in a row; rows of another size keep 16
    bits. Embedding and head keep 8 bits where others have 4, since a tied one is both (llama.cpp's
    own quantization keeps more than 4 bits there too)."""
    if is_fp32:
        return "F32"
    if main in _DTYPES:
        return main
    if shape[-1] % 32:
        return "F16"
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else main


def num_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Gives the size of a tensor in a file."""
    gguf = import_gguf()
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(np.prod(shape)) // block_size * block_bytes


def dtype_of(kind: str) -> torch.dtype:
    """Gives the dtype of the tensor that `decode` gives."""
    return _DTYPES.get(kind, torch.float32)


def encode(tensor: Tensor, kind: str, name: str) -> np.ndarray:
    """Gives the bytes of a tensor in a file: [num_bytes], uint8. Raises CheckpointError, which
    names the tensor by `name`, where a value is too large for the type."""
    if kind in _DTYPES:
        rounded = tensor.to(_DTYPES[kind])
        if not torch.isfinite(rounded).all():
            raise CheckpointError(
                f"{name} holds values that are too large for {kind.lower()}: give --quantize bf16 "
                "or f32"
            )
        return rounded.contiguous().view(torch.uint8).numpy().reshape(-1)
    gguf = import_gguf()
    values = tensor.float().contiguous().numpy()
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).reshape(-1)


def decode(content: np.ndarray, shape: tuple[int, ...], kind: str) -> Tensor:
    """Decodes a tensor from its bytes [num_bytes]; a quantized tensor becomes fp32."""
    if kind in _DTYPES:
        return torch.from_numpy(content).view(_DTYPES[kind]).reshape(shape)
    gguf = import_gguf()
    rows = content.reshape(*shape[:-1], -1)
    with np.errstate(invalid="ignore"):  # weights that are NaN are refused by name
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)
