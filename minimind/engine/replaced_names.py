"""Names of a module that mean something else for a while: for functions of DeepSpeed's that no
attribute of an instance can stand in for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def replaced_names(module: ModuleType, names: Mapping[str, Any]) -> Iterator[None]:
    """Within it the module's functions find these in the place of its own. Each must be there."""
    originals = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
