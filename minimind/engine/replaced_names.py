"""Replaces names of a module or an object for a while, to change functions of DeepSpeed and
PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def replaced_names(owner: Any, names: Mapping[str, Any]) -> Iterator[None]:
    """Replaces the `names` of a module, class or instance by the given values inside the block.
    What an instance has from its class is replaced for the instance alone. Each name must exist."""
    own = {name: value for name, value in vars(owner).items() if name in names}
    try:
        for name, value in names.items():
            getattr(owner, name)
            setattr(owner, name, value)
        yield
    finally:
        for name in names.keys() & vars(owner).keys():
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)
