"""Pretrains: the model learns to predict the next token of every document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import minimind_kernels as K
from torch import Tensor

from minimind.config.deepspeed_optimizers import is_muon
from minimind.config.recipe import Recipe, option
from minimind.data.formats import Format
from minimind.data.text_format import TEXT
from minimind.engine.stage import BuildContext, Policy, Stage, StageModels
from minimind.model.transformer import Transformer
from minimind.samples.files import TEXT_DATA, SampleData
from minimind.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """Defines the options of pretraining."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 4e-3, "tiny": 6e-3}
    """Gives the peak rates with Muon, which docs/learning.md measures."""
    other_rates: ClassVar[Mapping[str, float]] = {"": 5e-4, "tiny": 3e-3}
    """Gives the peak rates with any other optimizer."""

    optimizer: str = option(
        "Muon",
        "Muon for matrices and AdamW for the rest, or AdamW; where the DeepSpeed JSON says auto",
    )

    schedule: str = option(
        "wsd", "how the learning rate falls: cosine, or wsd (steady, then a linear fall)"
    )

    @property
    def usual_rates(self) -> Mapping[str, float]:
        return self.learning_rates if is_muon(self.optimizer) else self.other_rates


class Pretrain(Stage[Batch, Batch]):
    """Computes the cross-entropy of next-token prediction, summed over the targets."""

    name: ClassVar[str] = "pretrain"
    recipe_type: ClassVar[type[Recipe]] = PretrainRecipe
    needs_checkpoint: ClassVar[bool] = False
    data_format: ClassVar[Format] = TEXT
    sample_data: ClassVar[SampleData] = TEXT_DATA
    is_static: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def build_models(self, context: BuildContext) -> StageModels:
        policy = Transformer(context.config)
        policy.activation_checkpointing = self.recipe.activation_checkpointing
        if context.weights is None:
            policy.init_weights(self.recipe.seed)
        else:
            policy.load_named(context.weights)
        return StageModels(policy=policy)

    def loss(self, policy: Policy, batch: Batch) -> LossSum:
        labels_M = batch.labels_BT.flatten()

        def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
            return K.linear_cross_entropy(hidden_MD, weight_VD, labels_M, uniform_grad=True)

        output = policy(batch, head=head)
        return LossSum(total=output.per_token.sum(), aux_loss=output.aux_loss)
