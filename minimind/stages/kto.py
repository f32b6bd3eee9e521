"""Kahneman-Tversky optimisation: good answers become likelier and bad ones less likely, as compared
with the model the run starts from. A row is one answer, and whether it was a good one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from minimind.config.recipe import Recipe, option
from minimind.data.formats import Format
from minimind.data.sample_files import SampleData
from minimind.data.unpaired_format import UNPAIRED, UNPAIRED_DATA, UnpairedBatch
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext, Policy, Stage, StageModels
from minimind.errors import ConfigError
from minimind.stages.pretrain import Pretrain
from minimind.stages.reference import Reference, document_log_probs
from minimind.types import LossSum

LOSS_TYPES = ("kto", "apo_zero_unpaired")


@dataclass(frozen=True, kw_only=True)
class KTORecipe(Recipe):
    """Options of Kahneman-Tversky optimisation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-6, "tiny": 1e-4}

    gradient_clipping: float = option(0.5, "largest gradient norm (0: no clipping)")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    beta: float = option(0.1, "reward by log-probability ratio (higher: nearer to the reference)")
    loss_type: str = option(
        "kto",
        f"{' or '.join(LOSS_TYPES)}; the second compares with 0 instead of the policy's drift",
    )
    desirable_weight: float = option(1.0, "weight of a good answer's loss")
    undesirable_weight: float = option(
        1.0, "weight of a bad answer's loss; together they make up for unequal numbers of both"
    )

    def check(self) -> None:
        super().check()
        if self.loss_type not in LOSS_TYPES:
            raise ConfigError(
                f"loss_type is {self.loss_type!r}; it must be one of {', '.join(LOSS_TYPES)}"
            )
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta is {self.beta}; it must be above 0")
        for name in ("desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class KTOBatch(UnpairedBatch):
    """Answers, and what their rewards are compared with."""

    kl: Tensor
    """fp32 scalar, at least 0: how far the policy has drifted from the reference."""
    good_share: Tensor
    """fp32 scalar: of all answers that are counted together, those with label true."""


class KTO(Stage[UnpairedBatch, KTOBatch]):
    """One answer is a unit; good and bad ones need not be to the same prompts, nor as many.

    With log p the sum over the answer's targets, r = log π - log ref and z the mean of r over
    mismatched prompts and answers, never below 0 and without gradient, the loss of an answer is
        kto                 good: w_d·(1 - σ(β·(r - z)))    bad: w_u·(1 - σ(β·(z - r)))
                            (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic
                            Optimization", equation 7)
        apo_zero_unpaired   the same with z = 0
                            (D'Oosterlinck et al. 2024, "Anchored Preference Optimization")
    z is one number for the whole optimizer step, over all its micro-batches and ranks.
    """

    name: ClassVar[str] = "kto"
    recipe_type: ClassVar[type[Recipe]] = KTORecipe
    needs_checkpoint: ClassVar[bool] = True
    data_format: ClassVar[Format] = UNPAIRED
    sample_data: ClassVar[SampleData] = UNPAIRED_DATA
    metric_names: ClassVar[tuple[str, ...]] = ("kl", "good_reward", "bad_reward")

    reference: Reference
    """log ref of each answer, and of the mismatched answer to the same prompt."""

    def __init__(self, recipe: KTORecipe) -> None:
        self.recipe = recipe
        self.has_baseline = recipe.loss_type == "kto"

    def build_models(self, context: BuildContext) -> StageModels:
        """Raises ConfigError where there are no weights to take as the reference."""
        if context.weights_folder is None:
            raise ConfigError(
                "--stage kto compares with the weights it starts from, and --from_checkpoint none "
                "has none: give a checkpoint (of --stage sft)"
            )
        self.reference = Reference.load(context, self._measure, f"kto {self.has_baseline}")
        models = Pretrain(self.recipe).build_models(context)
        return replace(models, helpers_fingerprint=self.reference.fingerprint)

    def _measure(self, model: Policy, batch: UnpairedBatch) -> Tensor:
        own_P1, _, _ = document_log_probs(model, batch)
        if not self.has_baseline:
            return own_P1
        mismatched_P1, _, _ = document_log_probs(model, batch.mismatched)
        return torch.cat([own_P1, mismatched_P1], dim=1)

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[UnpairedBatch]
    ) -> Iterable[list[KTOBatch]]:
        """Yields the same micro-batches with the step's z beside them."""
        engine.train(False)
        sums = torch.stack([self._drift(engine, batch) for batch in micro_batches]).sum(0)
        engine.train()
        yield _with_sums(micro_batches, engine.sum_over_ranks(sums))

    def evaluate(self, policy: Policy, batch: UnpairedBatch) -> LossSum:
        """The loss, with z taken over the batch alone."""
        (prepared,) = _with_sums([batch], self._drift(policy, batch))
        return self.loss(policy, prepared)

    @torch.no_grad()
    def _drift(self, policy: Policy, batch: UnpairedBatch) -> Tensor:
        """fp64 [4]: the sum of r over mismatched answers and their number; of good answers and of
        all."""
        is_good_P = batch.meta["label"] & (batch.unit_ids_P >= 0)
        sums = is_good_P.new_zeros(4, dtype=torch.float64)
        sums[2], sums[3] = is_good_P.sum(), batch.count
        if self.has_baseline:
            log_probs_P = document_log_probs(policy, batch.mismatched)[0][:, 0]
            is_used_P = batch.mismatched.unit_ids_P >= 0
            ratio_P = log_probs_P - self.reference.of(batch.mismatched)[:, 1]
            sums[0] = torch.where(is_used_P, ratio_P, 0.0).double().sum()
            sums[1] = is_used_P.sum()
        return sums

    def loss(self, policy: Policy, batch: KTOBatch) -> LossSum:
        recipe = self.recipe
        log_probs_P1, _, aux_loss = document_log_probs(policy, batch)
        ratio_P = log_probs_P1[:, 0] - self.reference.of(batch)[:, 0]
        is_good_P, is_used_P = batch.meta["label"], batch.unit_ids_P >= 0
        above_P = recipe.beta * (ratio_P - batch.kl)
        # 1 - σ(x) = σ(-x), which keeps its digits where it is small.
        loss_P = torch.where(
            is_good_P,
            recipe.desirable_weight * torch.sigmoid(-above_P),
            recipe.undesirable_weight * torch.sigmoid(above_P),
        )
        reward_P = recipe.beta * ratio_P.detach()
        # The engine divides by all answers; each of these is a mean over its own kind.
        good = torch.where(is_good_P & is_used_P, reward_P, 0.0).sum()
        bad = torch.where(~is_good_P & is_used_P, reward_P, 0.0).sum()
        return LossSum(
            total=torch.where(is_used_P, loss_P, 0.0).sum(),
            aux_loss=aux_loss,
            metrics={
                "kl": batch.kl * batch.count,
                "good_reward": good / batch.good_share.clamp(min=1e-12),
                "bad_reward": bad / (1 - batch.good_share).clamp(min=1e-12),
            },
        )


def _with_sums(micro_batches: list[UnpairedBatch], sums: Tensor) -> list[KTOBatch]:
    """`sums`: of `KTO._drift`, over all micro-batches and ranks that are counted together."""
    ratio, num_mismatched, num_good, num_answers = sums.unbind()
    kl = (ratio / num_mismatched.clamp(min=1)).clamp(min=0).float()
    good_share = (num_good / num_answers.clamp(min=1)).float()
    return [
        KTOBatch(
            **{field.name: getattr(batch, field.name) for field in fields(batch)},
            kl=kl,
            good_share=good_share,
        )
        for batch in micro_batches
    ]
