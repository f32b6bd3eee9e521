"""Replaces names of a module for a while: for functions of DeepSpeed's that no attribute of an
instance can replace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def replaced_names(module: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    """Has the module's functions find these values in the place of its own, inside the block. Each
    name must exist."""
    originals = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
