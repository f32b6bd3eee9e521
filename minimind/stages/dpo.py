"""Trains by direct preference optimisation: the preferred of two answers becomes likelier than the
other, relative to the model that the run starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from minimind.config.recipe import Recipe, check_one_of, option
from minimind.data.formats import Format
from minimind.data.preference_format import PREFERENCE
from minimind.engine.stage import BuildContext, Policy, Stage, StageModels
from minimind.errors import ConfigError
from minimind.samples.files import PREFERENCE_DATA, SampleData
from minimind.stages.pretrain import Pretrain
from minimind.stages.reference import Reference, document_log_probs
from minimind.types import LossSum, UnitBatch

WITH_REFERENCE = ("dpo", "ipo")
LOSS_TYPES = (*WITH_REFERENCE, "orpo", "simpo")


@dataclass(frozen=True, kw_only=True)
class DPORecipe(Recipe):
    """Defines the options of preference optimisation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 4e-8, "tiny": 3e-5}

    gradient_clipping: float = option(0.5, "largest gradient norm (0: no clipping)")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    beta: float = option(
        0.15, "factor of log-probabilities in the reward; orpo: weight of the odds ratio"
    )
    loss_type: str = option("dpo", f"{', '.join(LOSS_TYPES)}; the last two need no reference")
    length_mean: bool = option(
        False, "means of token log-probabilities instead of sums (orpo and simpo: always)"
    )
    label_smoothing: float = option(0.0, "share of the pairs whose sides may be swapped (dpo)")
    simpo_gamma: float = option(0.5, "reward margin that simpo asks for")

    def check(self) -> None:
        super().check()
        check_one_of("loss_type", self.loss_type, LOSS_TYPES)
        self.check_above_0("beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; it must be from 0 to below 0.5"
            )
        if self.label_smoothing and self.loss_type != "dpo":
            raise ConfigError(f"label_smoothing is for loss_type dpo, not {self.loss_type}")


class DPO(Stage[UnitBatch, UnitBatch]):
    """Runs the chosen and rejected answers of all pairs in one packed forward.

    log π and log ref are an answer's log-probability under the policy and the reference: the sum
    over its targets, or with `length_mean` the mean. An answer's reward is β·(log π - log ref), and
    the margin is the chosen answer's reward minus the rejected one's. With ε = label_smoothing and
    γ = simpo_gamma, the loss of a pair is

        dpo     -(1 - ε)·log σ(margin) - ε·log σ(-margin)      (Rafailov et al. 2023)
        ipo     (margin/β - 1/(2β))²                           (Azar et al. 2023)
        simpo   -log σ(margin - γ)                             (Meng et al. 2024)
        orpo    -log π_c - β·log σ(log odds_c - log odds_r)    (Hong et al. 2024)

    simpo and orpo have no reference (log ref = 0) and always use means; c and r mark the chosen and
    rejected answer, and log odds is log(p/(1 - p)) of p = e^(log π).
    """

    name: ClassVar[str] = "dpo"
    may_start_fresh: ClassVar[bool] = False
    recipe_type: ClassVar[type[Recipe]] = DPORecipe
    needs_checkpoint: ClassVar[bool] = True
    data_format: ClassVar[Format] = PREFERENCE
    sample_data: ClassVar[SampleData] = PREFERENCE_DATA
    metric_names: ClassVar[tuple[str, ...]] = (
        "reward_margin",
        "reward_accuracy",
        "chosen_log_prob",
        "rejected_log_prob",
    )

    def __init__(self, recipe: DPORecipe) -> None:
        self.recipe = recipe
        self.means = recipe.length_mean or recipe.loss_type not in WITH_REFERENCE
        self.reference: Reference | None = None
        """The reference model's log-probabilities of each pair's chosen and rejected answer."""

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where there are no starting weights to use as the reference."""
        if self.recipe.loss_type in WITH_REFERENCE and context.weights_folder is None:
            raise ConfigError(
                "--stage dpo compares with the weights it starts from, and --from_checkpoint "
                "none gives none: give a checkpoint (of --stage sft), or --set loss_type=simpo "
                "or orpo, which compare with nothing"
            )

    def helper_folder(self, context: BuildContext) -> Path | None:
        return context.weights_folder if self.recipe.loss_type in WITH_REFERENCE else None

    def check_data(self, batches: Iterable[UnitBatch]) -> None:
        """Raises ConfigError where the two answers of every pair are equal, once cut to the row
        length. Only loss_type orpo learns from equal answers."""
        if self.recipe.loss_type != "orpo" and not any(map(_has_difference, batches)):
            raise ConfigError(
                f"no pair differs within {self.recipe.row_len} tokens: all are cut to two equal "
                "sides, which teach nothing. Raise --seq_len, or shorten the prompts"
            )

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds the policy and loads the reference's log-probabilities. Raises the errors of
        `check`."""
        self.check(context)
        if self.helper_folder(context):
            self.reference = Reference.load(context, lambda p, b: document_log_probs(p, b)[0])
        return Pretrain(self.recipe).build_models(context)

    def loss(self, policy: Policy, batch: UnitBatch) -> LossSum:
        log_probs_P2, counts_P2, aux_loss = document_log_probs(policy, batch)
        scale_P2 = counts_P2.clamp(min=1) if self.means else torch.ones_like(counts_P2)
        log_probs_P2 = log_probs_P2 / scale_P2
        rewards_P2 = self.recipe.beta * log_probs_P2
        if self.reference is not None:
            reference_P2 = self.reference.of(batch) / scale_P2
            rewards_P2 = self.recipe.beta * (log_probs_P2 - reference_P2)
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        is_pair_P = batch.unit_ids_P >= 0
        loss_P = torch.where(is_pair_P, self._pair_loss(margin_P, log_probs_P2), 0.0)
        logged_4P = torch.stack([margin_P, (margin_P > 0).float(), *log_probs_P2.unbind(1)])
        sums = torch.where(is_pair_P, logged_4P.detach(), 0.0).sum(1)
        return LossSum(
            total=loss_P.sum(),
            aux_loss=aux_loss,
            metrics=dict(zip(self.metric_names, sums, strict=True)),
        )

    def _pair_loss(self, margin_P: Tensor, log_probs_P2: Tensor) -> Tensor:
        recipe = self.recipe
        if recipe.loss_type == "ipo":
            return ((margin_P - 0.5) / recipe.beta).square()
        if recipe.loss_type == "simpo":
            return -logsigmoid(margin_P - recipe.simpo_gamma)
        if recipe.loss_type == "orpo":
            # log odds = log(p / (1 - p)); log p is kept below 0 so that log(1 - p) exists.
            below_P2 = log_probs_P2.clamp(max=-1e-6)
            odds_P2 = below_P2 - torch.log(-torch.expm1(below_P2))
            log_ratio_P = odds_P2[:, 0] - odds_P2[:, 1]
            return -log_probs_P2[:, 0] - recipe.beta * logsigmoid(log_ratio_P)
        smoothing = recipe.label_smoothing
        return -(1 - smoothing) * logsigmoid(margin_P) - smoothing * logsigmoid(-margin_P)


def _has_difference(batch: UnitBatch) -> bool:
    """Tells whether any pair of the batch has two answers that differ in their tokens."""
    ids_M = batch.ids_BT.flatten()
    pairs = torch.nonzero(batch.unit_ids_P >= 0).flatten().tolist()
    sides = ([ids_M[batch.doc_M == 2 * pair + side] for side in (0, 1)] for pair in pairs)
    return any(not torch.equal(chosen, rejected) for chosen, rejected in sides)
