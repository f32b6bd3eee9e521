"""Parses the flags of `minimind train` with two recipes."""

from __future__ import annotations

import dataclasses

from minimind.config.recipe import Recipe, option
from minimind.run.flags import TrainArguments, parse_train_arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherRecipe(Recipe):
    beta: float = option(0.15, "weight of the other thing")
    epochs: float = option(3.0, "passes over the data")


TYPES: dict[str, type[Recipe]] = {"pretrain": Recipe, "other": OtherRecipe}


def parse(*argv: str) -> TrainArguments:
    return parse_train_arguments(list(argv), TYPES)
