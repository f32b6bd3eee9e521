"""Reads the arguments of `minimind train` with the options of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimind.run.flags import TrainArguments, collect_train_arguments, parse_train_arguments
from minimind.stages import STAGES


def parse_arguments(argv: Sequence[str] | None) -> TrainArguments:
    """Reads the flags of `minimind train`; exits with status 2 on bad usage."""
    return parse_train_arguments(argv, _recipe_types())


def collect_arguments(options: dict[str, Any]) -> TrainArguments:
    """Reads keyword arguments as `minimind train` reads flags. Raises ConfigError."""
    return collect_train_arguments(options, _recipe_types())


def _recipe_types() -> dict[str, Any]:
    return {name: stage.recipe_type for name, stage in STAGES.items()}
