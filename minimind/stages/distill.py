"""Trains by distillation: a student learns from a teacher's whole next-token distribution as well
as from the text itself."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import minimind_kernels as K
import torch
from torch import Tensor

from minimind.config.recipe import Recipe, option
from minimind.data.same_tokens import check_same_tokens
from minimind.data.tokenizer import Tokenizer
from minimind.engine.stage import BuildContext, Policy, StageModels
from minimind.errors import ConfigError
from minimind.inference.load import load_model
from minimind.lora.folder import find_model_folder, fingerprint, load_folder_config
from minimind.model.transformer import Transformer
from minimind.stages.sft import SFT, SFTRecipe
from minimind.types import Batch, LossSum

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DistillRecipe(SFTRecipe):
    """Defines the options of distillation."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 5e-6, "tiny": 2e-3}

    epochs: float = option(6.0, "passes over the data")
    teacher: str | None = option(
        None, "the teacher: a run's folder, a checkpoint in it or a Hugging Face folder"
    )
    alpha: float = option(0.5, "weight of the text's own loss; the rest is the teacher's")
    temperature: float = option(1.5, "of both distributions (higher: unlikely tokens weigh more)")

    def check(self) -> None:
        super().check()
        if not self.teacher:
            raise ConfigError(
                "--stage distill learns from a teacher: give --set teacher=FOLDER, a run's folder, "
                "a checkpoint in it or a Hugging Face folder with the same tokenizer"
            )
        self.check_from_0_to_1("alpha")
        self.check_above_0("temperature")


class Distill(SFT):
    """Minimises, summed over the targets, α·(CE + aux) + (1 - α)·T²·KL(teacher ‖ student).

    α and T are the options alpha and temperature, CE the cross-entropy of the text, aux the
    routers' auxiliary loss. Both distributions in the KL are computed at temperature T; T² keeps
    its gradient as large as at T = 1 (Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015).
    """

    name: ClassVar[str] = "distill"
    recipe_type: ClassVar[type[Recipe]] = DistillRecipe
    metric_names: ClassVar[tuple[str, ...]] = ("ce", "kl")

    recipe: DistillRecipe
    teacher: Transformer

    def helper_folder(self, context: BuildContext) -> Path:
        return find_model_folder(Path(cast(str, self.recipe.teacher)))

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where the teacher's vocabulary or tokenizer is not the student's, or
        its context is too short; CheckpointError or DataError where there is no teacher."""
        super().check(context)
        folder = self.helper_folder(context)
        _check_same_vocabulary(folder, context)
        start = context.weights_folder
        if not self.recipe.alpha and start and fingerprint(folder) == fingerprint(start):
            raise ConfigError(
                f"alpha is 0 and the teacher {folder} has the weights that the student starts "
                "from: they agree already, and nothing would be learned; give an alpha above 0, or "
                "another teacher"
            )
        most = load_folder_config(folder).max_position_embeddings
        if self.recipe.seq_len is not None and self.recipe.seq_len > most:
            raise ConfigError(
                f"seq_len {self.recipe.seq_len} is beyond the max_position_embeddings {most} of "
                f"the teacher {folder}, and what it says there teaches nothing: give --seq_len "
                f"{most} or less"
            )

    def build_models(self, context: BuildContext) -> StageModels:
        """Builds the student and loads the teacher. Raises the errors of `check`."""
        self.check(context)
        models = super().build_models(context)
        folder = self.helper_folder(context)
        teacher, _ = load_model(folder, dtype=context.dtype, device=context.device)
        self.teacher = teacher.requires_grad_(False)
        size, dtype = f"{teacher.config.num_parameters:,}", str(context.dtype)
        logger.info("teacher    %s: %s parameters, %s", folder, size, dtype.removeprefix("torch."))
        return dataclasses.replace(models, helpers=(self.teacher,))

    def loss(self, policy: Policy, batch: Batch) -> LossSum:
        alpha, temperature = self.recipe.alpha, self.recipe.temperature
        labels_M = batch.labels_BT.flatten()
        with torch.no_grad():
            # The teacher's logits are computed beside the student's, a chunk of tokens at a time.
            teacher_ME = self.teacher(batch, head=lambda hidden_ME, _: hidden_ME).per_token
        teacher_head_VE = self.teacher.lm_head.weight
        sums: dict[str, Tensor] = {}

        def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
            loss_M, ce_M, kl_M = K.linear_distillation(
                hidden_MD, weight_VD, teacher_ME, teacher_head_VE, labels_M, alpha, temperature
            )
            sums.update(ce=ce_M.sum(), kl=kl_M.sum())
            return loss_M

        output = policy(batch, head=head)
        return LossSum(
            total=output.per_token.sum(),
            aux_loss=None if output.aux_loss is None else alpha * output.aux_loss,
            metrics=sums,
        )


def _check_same_vocabulary(folder: Path, context: BuildContext) -> None:
    """Raises ConfigError where a teacher's vocabulary or tokenizer is not the student's."""
    theirs, ours = load_folder_config(folder).vocab_size, context.config.vocab_size
    if theirs != ours:
        raise ConfigError(
            f"the teacher {folder} has a vocabulary of {theirs}, the student one of {ours}: their "
            "distributions cannot be compared. Distil on its generated text instead "
            "(minimind answer, then --stage sft), or take a teacher of the student's vocabulary"
        )
    if context.tokenizer is not None:
        check_same_tokens(
            context.tokenizer,
            Tokenizer.load(folder),
            "The teacher is given the student's ids: distil on its generated text instead "
            "(minimind answer, then --stage sft), or take a teacher with the student's tokenizer",
        )
