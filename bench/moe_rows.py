"""The rows of bench.moe_step: one model with its experts run in three ways."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import cast

import minimind_kernels as K
import torch
from torch import Tensor, nn

from bench.documents import Documents, PackedSteps
from bench.plain_loop import PlainTraining
from bench.workers import reset_peak_resident
from minimind.config.model import ModelConfig
from minimind.model.feed_forward import SwiGLU
from minimind.model.moe import MixtureOfExperts
from minimind.model.transformer import Transformer
from minimind.run.build import build_trained
from minimind.run.resolve import ResolvedRun
from minimind.runtime.memory import PeakMemory

ROWS = ("dense", "experts", "expert_loop")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoESpec:
    """All that a worker process needs to build its row."""

    row: str
    run: ResolvedRun
    """Trains a model with experts, of which the row `dense` makes one without."""
    documents: Documents


def dense_config(config: ModelConfig) -> ModelConfig:
    """The same model with one feed-forward layer, as wide as what a token meets of the experts."""
    return dataclasses.replace(
        config,
        intermediate_size=config.active_ffn_size,
        num_experts=0,
        num_experts_per_tok=1,
        moe_intermediate_size=0,
        n_shared_experts=0,
        mlp_only_layers=(),
    )


class LoopedExperts(MixtureOfExperts):
    """Experts as modules of their own, called one after the other with the tokens that chose them:
    what a reader would write first, and how the original MiniMind runs them. Router, auxiliary loss
    and activation are ours."""

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


class MoERow:
    """What the parent can ask of a row: steps of a stage in a bare loop."""

    def __init__(self, spec: MoESpec) -> None:
        run = spec.run
        if spec.row == "dense":
            run = dataclasses.replace(run, config=dense_config(run.config))
        self._device, self._rate = run.device.torch_device, run.learning_rate
        self._data = PackedSteps(
            spec.documents, seq_len=run.seq_len, micro_batch=run.micro_batch_size, accumulation=1
        )
        trained = build_trained(run)
        model = cast(Transformer, trained.models.policy)
        if spec.row == "expert_loop":
            for block in model.layers:
                if isinstance(block.mlp, MixtureOfExperts):
                    block.mlp = LoopedExperts(block.mlp)
        self._training = PlainTraining(trained.stage, model, run.recipe, run.dtype, self._device)

    def describe(self) -> dict[str, int]:
        return {
            "parameters": sum(weight.numel() for weight in self._training.masters.parameters),
            "threads": torch.get_num_threads(),
        }

    def start_timing(self) -> None:
        reset_peak_resident()
        self._memory = PeakMemory(self._device)

    def step(self, index: int) -> tuple[float, int]:
        """(seconds, targets) of one optimizer step."""
        (batch,) = self._data.step(index).batches
        self._wait()
        start = time.perf_counter()
        self._training.step([batch], self._rate)
        self._wait()
        return time.perf_counter() - start, batch.num_targets

    def measure(self, index: int) -> int:
        """Peak bytes, on a step of its own where measuring costs time."""
        with self._memory.measured():
            if self._device.type != "cuda":
                (batch,) = self._data.step(index).batches
                self._training.step([batch], self._rate)
        return self._memory.peak_bytes

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
