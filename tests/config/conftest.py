"""Shares the fixtures that resolve a DeepSpeed JSON, and that read one as DeepSpeed does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resolved_json import CPU, SIZES, Resolve

from minimind.config.deepspeed_json import SHIPPED, Hardware, load_ds_config, resolve
from minimind.config.recipe import Recipe, replace_fields
from minimind.config.sizes import Sizes


@pytest.fixture
def resolved(tmp_path: Path) -> Resolve:
    """Resolves a JSON (default: zero2.json) with overrides and options, as if the user gave them
    as flags."""

    def run(
        values: Any = None,
        sets: dict[str, Any] | None = None,
        hardware: Hardware = CPU,
        sizes: Sizes = SIZES,
        **given: Any,
    ) -> tuple[dict[str, Any], Recipe]:
        path = SHIPPED / "zero2.json"
        if values is not None:
            path = tmp_path / "mine.json"
            path.write_text(json.dumps(values))
        recipe = replace_fields(Recipe(), {"learning_rate": 5e-4, **given}, "test")
        ds = load_ds_config(str(path), sets or {})
        return resolve(ds, recipe, set(given), sizes, hardware, 1000)

    return run


@pytest.fixture
def deepspeed_config(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    """Gives the class by which the installed DeepSpeed reads a configuration."""
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig
