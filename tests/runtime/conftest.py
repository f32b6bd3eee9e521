"""Provides a folder of functions, and pools that call them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pooled_functions import SHIPPED, Build, write_functions

from minimind.runtime.function_pool import FunctionPool


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("functions")
    write_functions(folder)
    return folder


@pytest.fixture
def build(functions: Path) -> Iterator[Build]:
    pools: list[FunctionPool] = []

    def build(*names: str, **options: Any) -> FunctionPool:
        options = {"num_workers": 2, "timeout_s": 5.0, "shipped": SHIPPED, **options}
        pools.append(FunctionPool([f"{functions}/own.py:{name}" for name in names], **options))
        return pools[-1]

    yield build
    for pool in pools:
        pool.close()
