"""Parses the flags of `minimind train` with two stages."""

from __future__ import annotations

import dataclasses
from typing import ClassVar
from unittest import mock

from minimind.config.recipe import Recipe, option
from minimind.run.arguments import TrainArguments, parse_arguments
from minimind.stages import STAGES
from minimind.stages.pretrain import Pretrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherRecipe(Recipe):
    beta: float = option(0.15, "weight of the other thing")
    epochs: float = option(3.0, "passes over the data")


class Other(Pretrain):
    recipe_type: ClassVar[type[Recipe]] = OtherRecipe


two_stages = mock.patch.dict(STAGES, {"pretrain": Pretrain, "other": Other}, clear=True)
"""Leaves the stages pretrain and other alone."""


@two_stages
def parse(*argv: str) -> TrainArguments:
    return parse_arguments(list(argv))
