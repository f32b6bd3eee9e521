"""Fine-tunes on conversations: the model learns to predict the assistant's turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minimind.config.recipe import Recipe, option
from minimind.data.chat_format import CHAT
from minimind.data.formats import Format
from minimind.samples.files import CHAT_DATA, SampleData
from minimind.stages.pretrain import Pretrain


@dataclass(frozen=True, kw_only=True)
class SFTRecipe(Recipe):
    """Defines the options of supervised fine-tuning."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-5, "tiny": 2e-3}

    epochs: float = option(2.0, "passes over the data")
    system_prompt_ratio: float = option(
        0.0, "share of the conversations without a system prompt that get a random one"
    )
    empty_think_ratio: float = option(1.0, "share of the empty thinking blocks that stay")

    @property
    def format_options(self) -> dict[str, Any]:
        options = {
            "system_prompt_ratio": self.system_prompt_ratio,
            "empty_think_ratio": self.empty_think_ratio,
        }
        if options == {"system_prompt_ratio": 0.0, "empty_think_ratio": 1.0}:
            return {}  # so that all seeds share one token cache
        return {**options, "seed": self.seed}

    def check(self) -> None:
        super().check()
        self.check_from_0_to_1("system_prompt_ratio", "empty_think_ratio")


class SFT(Pretrain):
    """Computes the cross-entropy of the assistant's tokens in conversations, summed over them."""

    name: ClassVar[str] = "sft"
    recipe_type: ClassVar[type[Recipe]] = SFTRecipe
    needs_checkpoint: ClassVar[bool] = True
    data_format: ClassVar[Format] = CHAT
    sample_data: ClassVar[SampleData] = CHAT_DATA
