"""Which rows bench.train_step has for each stage, and those that a stage is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import minimind_kernels as K
import torch
from torch import Tensor, nn

from bench.documents import StepData
from bench.padded_rows import PADDED_ROWS
from bench.train_rows import EngineRow, PlainLoopRow, RowSpec, TrainRow, read_steps
from minimind.config.deepspeed_json import precision
from minimind.engine.checkpoint import find_model_folder
from minimind.engine.stage import BuildContext, Policy, Stage, StageModels
from minimind.inference.generate import load_model
from minimind.model.transformer import Transformer
from minimind.run.resolve import ResolvedRun
from minimind.stages.dpo import DPO, DPORecipe
from minimind.stages.pretrain import Pretrain
from minimind.stages.reference import PairData, pair_log_probs
from minimind.types import Batch, LossSum, PairBatch

ROWS = {
    "pretrain": ("original", "plain_loop", "engine"),
    "sft": ("plain_loop", "engine", "pretrain"),
    "lora": ("plain_loop", "engine", "sft"),
    "dpo": ("plain_loop", "engine", "two_models", "frozen"),
    "distill": ("plain_loop", "engine", "sft", "frozen"),
}
"""By stage. A row named after another stage is that stage in the engine."""
MORE_ROWS = {"pretrain": ("compiled", "transformers")}
"""Those that are measured where they are asked for."""


def row_stage(row: str, stage: str) -> str:
    """The stage that a row trains."""
    return row if row in ROWS else stage


def build_row(spec: RowSpec) -> TrainRow:
    kinds: dict[str, Callable[[RowSpec], TrainRow]] = {
        **PADDED_ROWS,
        "plain_loop": PlainLoopRow,
        "two_models": TwoModelRow,
        "frozen": FrozenRow,
    }
    return kinds.get(spec.name, EngineRow)(spec)


class FrozenRow:
    """Not a training step but its batches through the model that stands still: the forward of
    distillation's teacher, or of DPO's reference, up to the log-probability of each target."""

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        self.precision = precision(run.ds_config)
        self._device, self._steps = run.device.torch_device, read_steps(spec)
        folder = getattr(run.recipe, "teacher", None) or run.weights_folder
        assert folder is not None, "stages after pretraining start from weights"
        self.module: nn.Module = _load_frozen(Path(folder), run.dtype, self._device)

    def data(self, index: int) -> StepData[Batch]:
        return self._steps.step(index)

    @torch.no_grad()
    def step(self, batches: list[Batch]) -> Tensor:
        """Its "loss" is the mean negative log-probability."""
        total = torch.zeros((), device=self._device)
        for batch in batches:
            batch = batch.to(self._device)
            labels_M = batch.labels_BT.flatten()

            def head(hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor = labels_M) -> Tensor:
                return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

            total -= self.module(batch, head=head).per_token.sum()
        return total / max(1, sum(batch.num_targets for batch in batches))


class TwoModelRow(EngineRow):
    """DPO in the engine as it is without a cache: the reference beside the policy in every step."""

    def build_stage(self, run: ResolvedRun) -> Stage[Any]:
        return _TwoModelDPO(cast(DPORecipe, run.recipe))


class _TwoModelDPO(DPO):
    def build_models(self, context: BuildContext) -> StageModels:
        assert context.weights_folder is not None
        self._frozen = _load_frozen(context.weights_folder, context.dtype, context.device)
        num_pairs = cast(PairData, context.loader).num_units
        self.reference = torch.zeros(num_pairs + 1, 2, device=context.device)
        return Pretrain(self.recipe).build_models(context)

    def loss(self, policy: Policy, batch: PairBatch) -> LossSum:
        assert self.reference is not None
        with torch.no_grad():
            sums_P2, _, _ = pair_log_probs(self._frozen, batch)
            # Free places, numbered -1, write to the row behind all pairs.
            self.reference[batch.pair_ids_P] = sums_P2
        return super().loss(policy, batch)


def _load_frozen(path: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    model, _ = load_model(find_model_folder(path), dtype=dtype, device=device)
    return model.requires_grad_(False)
