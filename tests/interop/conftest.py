"""Provides a file that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def qwen3_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a small Qwen3, which no test changes."""
    from gguf_models import gguf_file  # which needs the package gguf

    return gguf_file(tmp_path_factory.mktemp("gguf"), "qwen3")
