"""What --set deterministic=true asks of PyTorch."""

from __future__ import annotations

import os

import pytest
import torch

from minimind.runtime.seeds import make_deterministic


def test_new_tensors_are_not_filled_for_it(monkeypatch: pytest.MonkeyPatch):
    filling = torch.utils.deterministic
    monkeypatch.setattr(filling, "fill_uninitialized_memory", filling.fill_uninitialized_memory)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not filling.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
