"""Provides a model for tests that do not care which, and decoding in C++."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from minimind_kernels import backend
from small_models import random_model, small_config

from minimind.inference import cpu_library
from minimind.model.transformer import Transformer


@pytest.fixture
def model() -> Transformer:
    return random_model(small_config()).eval()


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets decoding be compiled, as where no test runs."""
    monkeypatch.setattr(backend, "compile_setting", lambda: "1")
    yield
    cpu_library.load_library.cache_clear()
