"""Runs a module without the hooks that an engine has attached to it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Removes the forward hooks of the module and its children inside the block. ZeRO-3's hooks
    would free weights that were gathered on purpose, and wait for ranks that run no forward."""
    parts = list(module.modules())
    kept = [(part._forward_pre_hooks, part._forward_hooks) for part in parts]
    for part in parts:
        part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, (before, after) in zip(parts, kept, strict=True):
            part._forward_pre_hooks, part._forward_hooks = before, after
