"""A module's own forward, without what was hooked to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minimind.engine.bare_module import without_hooks


def test_hooks_are_silent_inside_and_back_afterwards():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    calls: list[str] = []
    for part in module.modules():
        part.register_forward_pre_hook(lambda *_: calls.append("before"))
        part.register_forward_hook(lambda *_: calls.append("after"))
    x = torch.ones(1, 2)
    expected = module(x)
    assert len(calls) == 6
    with without_hooks(module):
        assert torch.equal(module(x), expected)
    assert len(calls) == 6
    with pytest.raises(RuntimeError), without_hooks(module):
        raise RuntimeError
    module(x)
    assert len(calls) == 12
