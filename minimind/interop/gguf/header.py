"""Checks the header of a GGUF file against the file's size.

The package `gguf` believes every count in a header: one absurd length keeps it busy for hours, and
an honest long array takes some hundred bytes of memory for each of its elements.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from minimind.errors import CheckpointError

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""The size of a value by its type's number; the other types are strings and arrays."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 17
"""The most fields, and the most tensors."""
_MAX_ELEMENTS = 1 << 22
"""The most elements of all arrays together: several times those of the largest vocabularies."""
_MAX_DIMS = 4
"""GGML's own limit."""


def check_header(path: Path) -> None:
    """Raises CheckpointError where the header is longer than the file, or holds more than any
    model's. Numbers are little-endian (the format is described in ggml's docs/gguf.md)."""
    try:
        with open(path, "rb") as file:
            _Header(path, file).check()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


class _Header:
    """Walks through a header and keeps none of its values."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._num_bytes = os.fstat(file.fileno()).st_size
        self._num_elements = 0

    def check(self) -> None:
        self._skip(4)  # the file's mark
        version = self._number(4)
        if version not in _VERSIONS:
            raise self._damaged(f"version {version}; known: 2 and 3, little-endian")
        num_tensors, num_fields = self._number(8), self._number(8)
        for what, count in (("tensors", num_tensors), ("fields", num_fields)):
            if count > _MAX_ENTRIES:
                raise self._damaged(f"{count:,} {what}; {_MAX_ENTRIES:,} are the most")
        for _ in range(num_fields):
            self._skip_string()
            self._skip_value(self._number(4))
        for _ in range(num_tensors):
            self._skip_string()
            num_dims = self._number(4)
            if num_dims > _MAX_DIMS:
                raise self._damaged(f"a tensor of {num_dims:,} dimensions")
            self._skip(8 * num_dims + 4 + 8)

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            self._skip_array()
        elif kind in _SCALAR_BYTES:
            self._skip(_SCALAR_BYTES[kind])
        else:
            raise self._damaged(f"a field of the unknown type {kind}")

    def _skip_array(self) -> None:
        kind, length = self._number(4), self._number(8)
        self._num_elements += length
        if self._num_elements > _MAX_ELEMENTS:
            raise self._damaged(f"arrays of more than {_MAX_ELEMENTS:,} elements")
        if kind == _ARRAY:
            raise self._damaged("an array of arrays, which models here do not have")
        if kind in _SCALAR_BYTES:
            self._skip(length * _SCALAR_BYTES[kind])
            return
        for _ in range(length):
            self._skip_value(kind)

    def _skip_string(self) -> None:
        self._skip(self._number(8))

    def _number(self, size: int) -> int:
        content = self._file.read(size)
        if len(content) < size:
            raise self._damaged("its header is longer than the file")
        return struct.unpack("<I" if size == 4 else "<Q", content)[0]

    def _skip(self, size: int) -> None:
        end = self._file.tell() + size
        if end > self._num_bytes:
            raise self._damaged("its header is longer than the file")
        self._file.seek(end)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: a damaged or truncated GGUF file ({what})")
