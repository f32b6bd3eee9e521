"""Trains by Kahneman-Tversky optimisation: good answers become likelier and bad ones less likely,
relative to the model that the run starts from. A row is one answer, labelled good or bad."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from minimind.config.recipe import Recipe, check_one_of, option
from minimind.data.formats import Format
from minimind.data.unpaired_format import UNPAIRED, UnpairedBatch
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext, Policy, Stage, StageModels
from minimind.errors import ConfigError
from minimind.samples.files import UNPAIRED_DATA, SampleData
from minimind.stages.pretrain import Pretrain
from minimind.stages.reference import Reference, document_log_probs
from minimind.types import LossSum

logger = logging.getLogger(__name__)

LOSS_TYPES = ("kto", "apo_zero_unpaired")
_ENOUGH_COMPARED = 0.9
_INSTEAD = "give a larger --seq_len, or --set loss_type=apo_zero_unpaired"


@dataclass(frozen=True, kw_only=True)
class KTORecipe(Recipe):
    """Defines the options of Kahneman-Tversky optimisation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-6, "tiny": 1e-4}

    gradient_clipping: float = option(0.5, "largest gradient norm (0: no clipping)")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    beta: float = option(
        0.1, "factor of the log-probability ratio in the reward (higher: nearer to the reference)"
    )
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
        check_one_of("loss_type", self.loss_type, LOSS_TYPES)
        self.check_above_0("beta")
        self.check_at_least(desirable_weight=0, undesirable_weight=0)
        if not self.desirable_weight and not self.undesirable_weight:
            raise ConfigError(
                "desirable_weight and undesirable_weight are 0: no answer would teach anything; "
                "give one of them a weight"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KTOBatch(UnpairedBatch):
    """Holds answers, and the baseline that their rewards are compared with."""

    kl: Tensor
    """fp32 scalar, at least 0: z, the policy's estimated drift from the reference."""
    good_share: Tensor
    """fp32 scalar: the share of good answers among all answers of the step, or of the validation
    data."""


class KTO(Stage[UnpairedBatch, KTOBatch]):
    """Learns from single answers. Good and bad ones need not be answers to the same prompts, nor
    equal in number.

    log π and log ref are an answer's log-probability under the policy and the reference, summed
    over its targets, and r = log π - log ref. z is the mean of r over mismatched pairs of prompt
    and answer, at least 0 and without gradient. With w_d = desirable_weight and w_u =
    undesirable_weight the loss of an answer is

        kto                 good: w_d·(1 - σ(β·(r - z)))    bad: w_u·(1 - σ(β·(z - r)))
                            (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic
                            Optimization", equation 7)
        apo_zero_unpaired   the same with z = 0
                            (D'Oosterlinck et al. 2024, "Anchored Preference Optimization")

    z is one number for a whole optimizer step, over all its micro-batches and ranks; validation has
    one z for all of its data.
    """

    name: ClassVar[str] = "kto"
    may_start_fresh: ClassVar[bool] = False
    recipe_type: ClassVar[type[Recipe]] = KTORecipe
    needs_checkpoint: ClassVar[bool] = True
    data_format: ClassVar[Format] = UNPAIRED
    sample_data: ClassVar[SampleData] = UNPAIRED_DATA
    metric_names: ClassVar[tuple[str, ...]] = ("kl", "good_reward", "bad_reward")

    reference: Reference
    """The columns of `_measure` for each answer, under the starting weights."""

    def __init__(self, recipe: KTORecipe) -> None:
        self.recipe = recipe
        self.has_baseline = recipe.loss_type == "kto"

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where there are no starting weights to use as the reference."""
        if context.weights_folder is None:
            raise ConfigError(
                "--stage kto compares with the weights it starts from, and --from_checkpoint none "
                "gives none: give a checkpoint (of --stage sft)"
            )

    def helper_folder(self, context: BuildContext) -> Path | None:
        return context.weights_folder

    def check_data(self, batches: Iterable[UnpairedBatch]) -> None:
        """Raises ConfigError where every answer has weight 0, or no packed row holds two different
        answers to compare. Warns where all answers have the same label."""
        weights = {True: self.recipe.desirable_weight, False: self.recipe.undesirable_weight}
        counts, compares = False, not self.has_baseline
        kinds: set[bool] = set()
        for batch in batches:
            labels = batch.meta["label"][batch.unit_ids_P >= 0].tolist()
            kinds.update(labels)
            counts = counts or any(weights[label] for label in labels)
            compares = compares or bool((batch.mismatched.unit_ids_P >= 0).any())
            if counts and compares and len(kinds) > 1:
                return
        if counts and compares:
            logger.warning(
                "all answers are %s: nothing says what to tell them from; add rows with label %s",
                *(("good", "false") if True in kinds else ("bad", "true")),
            )
            return
        if not counts:
            raise ConfigError(
                f"desirable_weight is {weights[True]} and undesirable_weight {weights[False]}, and "
                "there are only answers of weight 0: nothing would be learned"
            )
        raise ConfigError(
            "--stage kto compares each answer with those to other prompts in its packed row, and "
            f"no row holds two different answers: {_INSTEAD}"
        )

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds the policy and loads the reference's log-probabilities. Raises the errors of
        `check`."""
        self.check(context)
        self.reference = Reference.load(context, self._measure, f"kto {self.has_baseline}")
        num_training = getattr(context.loader, "num_units", len(self.reference.values))
        _check_answers(self.reference.values[:num_training], self.has_baseline)
        return Pretrain(self.recipe).build_models(context)

    def _measure(self, model: Policy, batch: UnpairedBatch) -> Tensor:
        """Gives fp32 columns by answer: its log-probability, its label (1 good, 0 bad), and with a
        baseline the log-probability of the mismatched answer, NaN where there is none."""
        own_P1, _, _ = document_log_probs(model, batch)
        columns = [own_P1, batch.meta["label"].float()[:, None]]
        if self.has_baseline:
            other_P1, _, _ = document_log_probs(model, batch.mismatched)
            is_free_P1 = batch.mismatched.unit_ids_P[:, None] < 0
            columns.append(other_P1.masked_fill(is_free_P1, torch.nan))
        return torch.cat(columns, dim=1)

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[UnpairedBatch], step: int
    ) -> Iterable[list[KTOBatch]]:
        """Yields the micro-batches of one step, with the step's z added."""
        engine.train(False)
        sums = self._sum_drift(engine, micro_batches)
        engine.train()
        yield [_with_baseline(batch, sums) for batch in micro_batches]

    def evaluate(
        self, engine: DeepSpeedEngine, batches: Iterable[UnpairedBatch]
    ) -> Iterator[tuple[KTOBatch, LossSum]]:
        """Yields each batch with its loss. An earlier pass computes one z over all validation data,
        so the loss does not depend on the size of a micro-batch."""
        sums = self._sum_drift(engine, batches)
        for batch in batches:
            prepared = _with_baseline(batch, sums)
            yield prepared, self.loss(engine, prepared)

    @torch.no_grad()
    def _sum_drift(self, engine: DeepSpeedEngine, batches: Iterable[UnpairedBatch]) -> Tensor:
        """Sums over all batches and ranks, fp64 [4]: r of the mismatched answers, their number, the
        number of good answers, the number of all answers."""
        sums = torch.zeros(4, dtype=torch.float64, device=engine.device)
        for batch in batches:
            is_good_P = batch.meta["label"] & (batch.unit_ids_P >= 0)
            sums[2:] += torch.stack([is_good_P.sum(), (batch.unit_ids_P >= 0).sum()])
            if self.has_baseline:
                log_probs_P = document_log_probs(engine, batch.mismatched)[0][:, 0]
                ratio_P = log_probs_P - self.reference.of(batch.mismatched)[:, 2]
                is_used_P = batch.mismatched.unit_ids_P >= 0
                used_P = torch.where(is_used_P, ratio_P, 0.0).double()
                sums[:2] += torch.stack([used_P.sum(), is_used_P.sum().double()])
        return engine.sum_over_ranks(sums)

    def loss(self, policy: Policy, batch: KTOBatch) -> LossSum:
        """Sums the losses of a batch's answers. The metric `kl` is z; `good_reward` and
        `bad_reward` are the mean β·r of each kind."""
        recipe = self.recipe
        log_probs_P1, _, aux_loss = document_log_probs(policy, batch)
        ratio_P = log_probs_P1[:, 0] - self.reference.of(batch)[:, 0]
        is_good_P, is_used_P = batch.meta["label"], batch.unit_ids_P >= 0
        above_P = recipe.beta * (ratio_P - batch.kl)
        # 1 - σ(x) is computed as σ(-x), which stays precise where it is small.
        loss_P = torch.where(
            is_good_P,
            recipe.desirable_weight * torch.sigmoid(-above_P),
            recipe.undesirable_weight * torch.sigmoid(above_P),
        )
        reward_P = recipe.beta * ratio_P.detach()
        # The loop divides metrics by the count of all answers. Scaled by their kind's share, these
        # become means over their own kind, or NaN in a step without that kind.
        good = torch.where(is_good_P & is_used_P, reward_P, 0.0).sum()
        bad = torch.where(~is_good_P & is_used_P, reward_P, 0.0).sum()
        return LossSum(
            total=torch.where(is_used_P, loss_P, 0.0).sum(),
            aux_loss=aux_loss,
            metrics={
                "kl": batch.kl * batch.count,
                "good_reward": good / batch.good_share,
                "bad_reward": bad / (1 - batch.good_share),
            },
        )


def _with_baseline(batch: UnpairedBatch, sums: Tensor) -> KTOBatch:
    """Adds z and the share of good answers to a batch. `sums` is what KTO._sum_drift gives for the
    whole step, or for all validation data."""
    ratio, num_mismatched, num_good, num_answers = sums.unbind()
    return batch.extend(
        KTOBatch,
        kl=(ratio / num_mismatched.clamp(min=1)).clamp(min=0).float(),
        good_share=(num_good / num_answers.clamp(min=1)).float(),
    )


def _check_answers(values_UC: Tensor, has_baseline: bool) -> None:
    """Logs how many answers are good and bad, and warns where too few can be compared. `values_UC`
    holds KTO._measure's columns for the training data."""
    read_RC = values_UC[values_UC[:, 0].isfinite()]
    num_good = int(read_RC[:, 1].sum())
    num_bad = len(read_RC) - num_good
    logger.info("answers    %d good, %d bad", num_good, num_bad)
    if not has_baseline:
        return
    share = float(read_RC[:, 2].isfinite().float().mean()) if len(read_RC) else 0.0
    if share < _ENOUGH_COMPARED:
        logger.warning(
            "only %.0f%% of the answers share a packed row with another one, and kl is estimated "
            "from the shorter ones: %s",
            100 * share,
            _INSTEAD,
        )
