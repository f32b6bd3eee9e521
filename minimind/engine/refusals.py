"""Turns DeepSpeed's errors about its JSON into ConfigErrors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError


@contextlib.contextmanager
def refusals(deepspeed: Any) -> Iterator[None]:
    """Turns errors of DeepSpeed about its JSON, raised inside the block, into ConfigErrors.
    `deepspeed` is the module."""
    try:
        # pydantic's ValidationError is a ValueError.
        yield
    except (TypeError, ValueError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
        text = _describe(error, deepspeed) if hasattr(error, "errors") else str(error)
        raise ConfigError(f"DeepSpeed refuses the JSON: {text}") from error


def _describe(error: Any, deepspeed: Any) -> str:
    """Lists pydantic's complaint about each field, without the links."""
    kinds = deepspeed.runtime.config_utils.DeepSpeedConfigModel.__subclasses__()
    fields = next((kind.model_fields for kind in kinds if kind.__name__ == error.title), {})
    problems = []
    for found in error.errors():
        name = ".".join(map(str, found["loc"]))
        guess = "" if name in fields else did_you_mean(name, fields)
        problems.append(f"{name}: {found['msg']}{guess}, not {found['input']!r}")
    section = error.title.removeprefix("DeepSpeed").removesuffix("Config")
    return f"its section {section}: {'; '.join(problems)}"
