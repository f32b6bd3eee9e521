"""Reads a GGUF file of an architecture that models here have."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.interop.gguf import architecture, encoding
from minimind.interop.gguf.header import check_header
from minimind.interop.gguf.tensors import GgufTensor, gguf_tensors
from minimind.interop.gguf.tokenizer import from_fields as read_tokenizer
from minimind.interop.options import ConvertOptions
from minimind.interop.source import LazyTensor, LazyTensors, Source, check_tensors

_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class _Entry:
    """Describes one tensor of a file."""

    shape: tuple[int, ...]
    kind: str
    offset: int


def detect(path: Path) -> bool:
    """Tells whether a path is a GGUF file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_file(path: Path, options: ConvertOptions) -> Source:
    """Opens a GGUF file. Its tokenizer lies in a temporary folder as long as the result is kept.
    Raises CheckpointError for a damaged file and for a model that cannot be computed here."""
    options.check_only_tokenizer(path)
    fields, entries = _read_header(path)
    try:
        return _make_source(fields, entries, path, options)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: a field is of another type than GGUF's: {error}") from None


def _make_source(
    fields: Mapping[str, Any], entries: Mapping[str, _Entry], path: Path, options: ConvertOptions
) -> Source:
    if fields.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{path}: one of {fields['split.count']} files of a model; join them with "
            "llama-gguf-split --merge"
        )
    config = _read_config(fields, entries, path)
    origin = str(path)
    tensors = check_tensors(config, LazyTensors(_lazy_tensors(config, entries, path), origin))
    folder = options.tokenizer
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="minimind-gguf-")
        weakref.finalize(tensors, temporary.cleanup)
        folder = Path(temporary.name)
        read_tokenizer(fields, origin).save(folder)
    return Source(path=path, config=config, tensors=tensors, tokenizer=folder)


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, _Entry]]:
    gguf = encoding.import_gguf()
    check_header(path)
    try:
        file = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in file.fields.items()}
        entries = {
            tensor.name: _Entry(
                tuple(map(int, reversed(tensor.shape))),
                tensor.tensor_type.name,
                int(tensor.data_offset),
            )
            for tensor in file.tensors
        }
    except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: a damaged or truncated GGUF file ({type(error).__name__}: {error})"
        ) from None
    return fields, entries


def _read_config(
    fields: Mapping[str, Any], entries: Mapping[str, _Entry], path: Path
) -> ModelConfig:
    names = ("bos", "eos", "padding")
    found = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in names}
    given = {
        f"{'pad' if name == 'padding' else name}_token_id": id
        for name, id in found.items()
        if id is not None
    }
    given["tie_word_embeddings"] = "output.weight" not in entries
    return architecture.from_fields(fields, given, str(path))


def _lazy_tensors(
    config: ModelConfig, entries: Mapping[str, _Entry], path: Path
) -> dict[str, LazyTensor]:
    left = dict(entries)
    lazy: dict[str, LazyTensor] = {}
    for tensor in gguf_tensors(config):
        entry = left.pop(tensor.name, None)
        if entry is None:
            raise CheckpointError(f"{path}: the tensor {tensor.name} is missing")
        if len(entry.shape) != (3 if tensor.join == "stack" else min(2, len(entry.shape))):
            raise CheckpointError(f"{path}: {tensor.name} is {list(entry.shape)}")
        for number, name in enumerate(tensor.parts):
            lazy[name] = _lazy_part(tensor, number, entry, path)
    if left:
        raise CheckpointError(f"{path}: models here have no {', '.join(sorted(left)[:5])}")
    return lazy


def _lazy_part(tensor: GgufTensor, number: int, entry: _Entry, path: Path) -> LazyTensor:
    """Gives one part of a tensor. An expert's bytes stand together, so they are read alone."""
    count, shape = len(tensor.parts), entry.shape
    if tensor.join == "stack":
        if shape[0] != count:
            raise CheckpointError(f"{path}: {tensor.name} holds {shape[0]} experts, not {count}")
        one = _Entry(
            shape[1:],
            entry.kind,
            entry.offset + number * encoding.num_bytes(shape[1:], entry.kind),
        )
        return LazyTensor(one.shape, encoding.dtype_of(one.kind), lambda: _read(path, one))
    if tensor.join == "rows":
        shape = (shape[0] // count, *shape[1:])
    elif tensor.join == "columns":
        shape = (shape[0], shape[1] // count)
    dtype = encoding.dtype_of(entry.kind)
    return LazyTensor(shape, dtype, lambda: tensor.part(number, _read(path, entry)).contiguous())


def _read(path: Path, entry: _Entry) -> Tensor:
    count = encoding.num_bytes(entry.shape, entry.kind)
    try:
        content = np.fromfile(path, dtype=np.uint8, count=count, offset=entry.offset)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) < count:
        raise CheckpointError(f"{path}: truncated")
    try:
        return encoding.decode(content, entry.shape, entry.kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: the package gguf does not read weights of the type {entry.kind.lower()}: "
            "write another one with llama-quantize"
        ) from None
