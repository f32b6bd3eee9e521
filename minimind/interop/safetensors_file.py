"""Reads and writes safetensors files one tensor at a time, so that neither needs memory for the
whole model."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.interop.mapped_file import MappedFile
from minimind.interop.source import LazyTensor
from minimind.model.state_dict import readable_safetensors

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()} | {"F64": torch.float64}
_ALIGNMENT = 8


def lazy_tensors(path: Path) -> dict[str, LazyTensor]:
    """Gives the tensors of a file by name, unread. Raises CheckpointError where the file is no
    safetensors file, is truncated, or holds weights that are not floating-point numbers."""

    def open_file():  # the library gives no type
        with readable_safetensors(path):
            return safe_open(path, framework="pt")

    def read(name: str) -> Tensor:
        with readable_safetensors(path):
            return file.read(lambda opened: opened.get_tensor(name))

    file = MappedFile(open_file)
    entries: dict[str, LazyTensor] = {}
    with readable_safetensors(path):
        opened = file.file()
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {name} is {part.get_dtype()}; weights here are {', '.join(_DTYPES)}"
                )
            entries[name] = LazyTensor(
                tuple(part.get_shape()), _DTYPES[part.get_dtype()], functools.partial(read, name)
            )
    return entries


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file, taking `tensors` (in the order of `shapes`, in `dtype`) one by
    one. The library's own writer needs all of them in memory.

    Format: the header's length as a little-endian 64-bit integer, the header as JSON, the tensors'
    bytes in its order (github.com/huggingface/safetensors). Raises OSError.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    names = iter(shapes)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, tensor in tensors:
            assert (name, tuple(tensor.shape)) == (next(names), shapes[name])
            assert tensor.dtype == dtype
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        assert next(names, None) is None
