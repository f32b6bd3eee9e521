"""Replaces names of a module for a while, to change functions of DeepSpeed that cannot be replaced
on an instance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def replaced_names(module: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    """Replaces the module's `names` by the given values inside the block, as its own functions see
    them. Each name must exist."""
    originals = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
