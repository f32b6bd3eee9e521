"""Reads files that `torch.save` wrote, without running any code in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from minimind.config.json_file import check_regular
from minimind.errors import CheckpointError

_ZIP, _PICKLE = b"PK", b"\x80"
"""The first bytes of a file of torch.save: since PyTorch 1.6, and before."""


def load_pickle(path: Path, stand_ins: Mapping[str, type] | None = None) -> Any:
    """Loads what `torch.save` wrote. Tensors stay on disk until they are used. Objects of the
    classes that `stand_ins` names become objects of the given classes instead. Raises
    CheckpointError where the file is damaged, or holds more than these, tensors and plain
    values."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            first = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if first != _ZIP:
        raise CheckpointError(f"{path}: {_describe_other(first)}")
    try:
        with torch.serialization.safe_globals([(c, n) for n, c in (stand_ins or {}).items()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f": {found[1]}" if found else ""
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values{what}. Nothing of it was run, since "
            "such a file can run any code. If you trust whoever made it, load it in Python and "
            "save its state_dict alone"
        ) from None
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise CheckpointError(f"{path}: damaged or truncated ({error})") from None


def save_pickle(path: Path, content: Any) -> None:
    """Writes what `load_pickle` loads. Raises OSError, which `torch.save` does not where a disk is
    full."""
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from None


def _describe_other(first: bytes) -> str:
    if not first:
        return "empty"
    if first[:1] == _PICKLE:
        return (
            "in the format of PyTorch before 1.6, which is not read here: load it with "
            "torch.load(..., weights_only=True) and save it again"
        )
    return "not a file of torch.save"
