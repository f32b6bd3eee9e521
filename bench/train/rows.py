"""Defines the rows of bench.train: what happens in a step of each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import minimind_kernels as K
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.train.documents import Steps
from bench.train.padded import PADDED_ROWS
from bench.train.plain_loop import PlainTraining
from bench.train.rollouts import Answered, OriginalAnswers, watch_answers
from bench.train.specs import RowSpec
from minimind.config.deepspeed_json import precision
from minimind.engine.stage import Policy
from minimind.errors import ConfigError
from minimind.inference.load import load_model
from minimind.lora.folder import find_model_folder
from minimind.model.feed_forward import SwiGLU
from minimind.model.moe import MixtureOfExperts
from minimind.model.transformer import Transformer
from minimind.run.build import build_schedule, build_trained
from minimind.stages.reference import document_log_probs
from minimind.types import Batch, LossSum, UnitBatch

Z_LOSS = 1e-4
"""The factor of PaLM (Chowdhery et al., 2022)."""


class TrainRow(Protocol):
    precision: str
    module: nn.Module

    answers: Answered | None
    """Tells what the last step learned from, for a stage that answers prompts; else None."""

    @property
    def steps(self) -> Steps:
        """Gives the data of a step by its number."""
        ...

    def step(self) -> Tensor | float:
        """Takes the next optimizer step, on micro-batches that were read ahead in the background.
        Gives the mean loss, without waiting for the device."""
        ...


def build_row(spec: RowSpec) -> TrainRow:
    kinds: dict[str, Callable[[RowSpec], TrainRow]] = {
        **PADDED_ROWS,
        "plain_loop": PlainLoopRow,
        "dense": PlainLoopRow,
        "expert_loop": ExpertLoopRow,
        "two_models": TwoModelRow,
        "frozen": FrozenRow,
        "z_loss": ZLossRow,
    }
    if spec.name == "original" and spec.documents is None:
        return OriginalAnswers(spec)
    return kinds.get(spec.name, EngineRow)(spec)


class EngineRow:
    """Takes steps of a stage's training run, with all that the loop does in a step."""

    def __init__(self, spec: RowSpec) -> None:
        self.run, self.steps = spec.open_run()
        self.precision = precision(spec.run.ds_config)
        self.module = self.run.build(self.steps).loop.engine.module
        self.answers = watch_answers(self.run.loop.stage)

    def step(self) -> float:
        return self.run.step().loss


class TwoModelRow(EngineRow):
    """Trains DPO without a cache: the reference runs beside the policy in every step."""

    def __init__(self, spec: RowSpec) -> None:
        super().__init__(spec)
        folder, device = spec.run.weights_folder, spec.run.device.torch_device
        assert folder is not None, "DPO compares with the weights it starts from"
        stage = cast(Any, self.run.loop.stage)
        stage.reference = _AskedReference(_load_frozen(folder, spec.run.dtype, device))


class _AskedReference:
    """Stands for stages.reference.Reference, and caches nothing."""

    def __init__(self, frozen: Transformer) -> None:
        self._frozen = frozen

    @torch.no_grad()
    def of(self, batch: UnitBatch) -> Tensor:
        return document_log_probs(self._frozen, batch)[0]


class ZLossRow(EngineRow):
    """Pretrains with a z-loss, Z_LOSS · (log of the sum of exp(logits))² for each target, which
    keeps logits small. It is plain PyTorch, so its times mean nothing."""

    def __init__(self, spec: RowSpec) -> None:
        super().__init__(spec)
        self.run.loop.stage.loss = _loss_with_z  # type: ignore[method-assign]


def _loss_with_z(policy: Policy, batch: Batch) -> LossSum:
    labels_M = batch.labels_BT.flatten()

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        logits_MV = (hidden_MD @ weight_VD.T).float()
        losses_M = functional.cross_entropy(logits_MV, labels_M, reduction="none")
        return losses_M + Z_LOSS * (labels_M >= 0) * logits_MV.logsumexp(1).square()

    output = policy(batch, head=head)
    return LossSum(total=output.per_token.sum(), aux_loss=output.aux_loss)


class PlainLoopRow:
    """Trains a stage in a bare loop: in bf16 with fp32 masters and fp32 accumulation."""

    def __init__(self, spec: RowSpec) -> None:
        resolved = spec.run
        self.precision = precision(resolved.ds_config)
        if self.precision == "fp16":
            raise ConfigError(
                f"the row plain_loop has no loss scaling, and {spec.ds_config_name} trains in fp16 "
                "here: give --precision, or --rows without plain_loop"
            )
        run, self.steps = spec.open_run()
        device = resolved.device.torch_device
        trained = build_trained(resolved, run.tokenizer, self.steps)
        self.module = self.prepare(trained.models.policy)
        self.answers = watch_answers(trained.stage)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._training = PlainTraining(trained.stage, self.module, resolved.recipe, dtype, device)
        self._rates = map(build_schedule(resolved, spec.steps), range(spec.steps))
        self._batches = self.steps.read(0, spec.steps, pin=device.type == "cuda")

    def prepare(self, module: nn.Module) -> nn.Module:
        return module

    def step(self) -> Tensor:
        return self._training.step(next(self._batches), next(self._rates))


class ExpertLoopRow(PlainLoopRow):
    """Trains in a bare loop with experts that are called one after the other."""

    def prepare(self, module: nn.Module) -> nn.Module:
        for block in cast(Transformer, module).layers:
            if isinstance(block.mlp, MixtureOfExperts):
                block.mlp = LoopedExperts(block.mlp)
        return module


class LoopedExperts(MixtureOfExperts):
    """Holds each expert as a module, and calls one after the other with the tokens that were routed
    to it. A reader would write this first, and the original MiniMind runs its experts so. Router,
    auxiliary loss and activation are ours."""

    def __init__(self, mixture: MixtureOfExperts) -> None:
        config = mixture.config
        with torch.device("meta"):
            super().__init__(config)
        self.gate, self.shared_experts = mixture.gate, mixture.shared_experts
        del self.gate_up_proj, self.down_proj
        size = (config.hidden_size, config.moe_intermediate_size)
        experts = [SwiGLU(*size) for _ in range(config.num_experts)]
        for number, expert in enumerate(experts):
            expert.gate_up_proj.weight.data = mixture.gate_up_proj.data[number].clone()
            expert.down_proj.weight.data = mixture.down_proj.data[number].clone()
        self.experts = nn.ModuleList(experts)

    def run_experts(self, x_MD: Tensor, routing: K.Routing) -> Tensor:
        out_MD = torch.zeros_like(x_MD)
        for number, expert in enumerate(self.experts):
            tokens, slots = (routing.experts_MS == number).nonzero(as_tuple=True)
            weighted_ND = expert(x_MD[tokens]) * routing.weights_MS[tokens, slots].unsqueeze(1)
            out_MD = out_MD.index_add(0, tokens, weighted_ND.to(x_MD.dtype))
        return out_MD


class FrozenRow:
    """Runs the batches of a step through a frozen model: the forward of distillation's teacher, or
    of DPO's reference, up to the log-probability of each target. Nothing is trained."""

    answers: Answered | None = None

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        self.precision = precision(run.ds_config)
        self._device = run.device.torch_device
        _, self.steps = spec.open_run()
        self._batches = self.steps.read(0, spec.steps, pin=self._device.type == "cuda")
        folder = getattr(run.recipe, "teacher", None) or run.weights_folder
        assert folder is not None, "stages after pretraining start from weights"
        self.module: nn.Module = _load_frozen(Path(folder), run.dtype, self._device)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Runs the next step's batches through the frozen model. Gives the mean negative
        log-probability of the targets, where other rows give their loss."""
        total, batches = torch.zeros((), device=self._device), next(self._batches)
        for batch in batches:
            batch = batch.to(self._device)
            labels_M = batch.labels_BT.flatten()

            def head(hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor = labels_M) -> Tensor:
                return K.linear_log_prob(hidden_MD, weight_VD, labels_M)

            total -= self.module(batch, head=head).per_token.sum()
        return total / max(1, sum(batch.num_targets for batch in batches))


def _load_frozen(path: Path, dtype: torch.dtype, device: torch.device) -> Transformer:
    model, _ = load_model(find_model_folder(path), dtype=dtype, device=device)
    return model.requires_grad_(False)
