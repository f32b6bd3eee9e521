"""Joins a policy and its critic in one module, so that one engine trains both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.model.transformer import Transformer
from minimind.stages.rollout_batch import RolloutBatch
from minimind.types import Batch, HeadFn, ModelOutput


@dataclass(frozen=True, kw_only=True)
class ActorCriticOutput(ModelOutput):
    """Holds the outputs of the policy and the critic for a batch."""

    values_R: Tensor
    """fp32 [R], by target: the reward that the critic expects at the moment the target is drawn."""


class ValueHead(nn.Module):
    """Computes a value from each hidden state, the dot product with its weight, in fp32: [R, D] ->
    [R]. The weight starts at 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_RD: Tensor) -> Tensor:
        return hidden_RD.float() @ self.weight.float()


class ActorCritic(nn.Module):
    """Holds a policy and a critic: a second transformer of the same size whose output is a value
    head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.policy = Transformer(config)
        # With tied embeddings the critic has no separate output matrix, which nothing would read.
        self.critic = Transformer(replace(config, tie_word_embeddings=True))
        self.value_head = ValueHead(config.hidden_size)

    def forward(self, batch: Batch, head: HeadFn) -> ActorCriticOutput:
        """Gives the policy's output and the critic's values for a RolloutBatch. The auxiliary
        losses of both are added."""
        indices_R = cast(RolloutBatch, batch).indices_R

        def value(hidden_MD: Tensor, _: Tensor) -> Tensor:
            return self.value_head(hidden_MD.index_select(0, indices_R))

        said, judged = self.policy(batch, head), self.critic(batch, value)
        aux_loss = said.aux_loss
        if aux_loss is not None and judged.aux_loss is not None:
            aux_loss = aux_loss + judged.aux_loss
        return ActorCriticOutput(
            per_token=said.per_token, aux_loss=aux_loss, values_R=judged.per_token
        )


def count_critic_weights(config: ModelConfig) -> int:
    """Counts the critic's weights: the transformer with tied embeddings and the value head."""
    return replace(config, tie_word_embeddings=True).num_parameters + config.hidden_size
