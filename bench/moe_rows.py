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
from bench.masters import Masters
from bench.workers import reset_peak_resident
from minimind.config.model import ModelConfig
from minimind.engine.stage import BuildContext
from minimind.model.feed_forward import SwiGLU
from minimind.model.moe import MixtureOfExperts
from minimind.model.transformer import Transformer
from minimind.runtime.memory import PeakMemory
from minimind.stages.pretrain import Pretrain, PretrainRecipe
from minimind.types import Batch

ROWS = ("dense", "experts", "expert_loop")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoESpec:
    """All that a worker process needs to build its row."""

    row: str
    config: ModelConfig
    """With experts; what the row `dense` makes of it is its own matter."""
    documents: Documents
    seq_len: int
    micro_batch: int
    dtype: torch.dtype
    device: torch.device


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


class ExpertLoop(MixtureOfExperts):
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
    """What the parent can ask of a row: steps of pretraining in a bare loop, with AdamW on fp32
    weights."""

    def __init__(self, spec: MoESpec) -> None:
        self._device = spec.device
        recipe = PretrainRecipe()
        self._stage, self._clipping = Pretrain(recipe), recipe.gradient_clipping
        self._data = PackedSteps(
            spec.documents, seq_len=spec.seq_len, micro_batch=spec.micro_batch, accumulation=1
        )
        config = dense_config(spec.config) if spec.row == "dense" else spec.config
        policy = self._stage.build_models(BuildContext(config=config)).policy
        self._model = cast(Transformer, policy)
        if spec.row == "expert_loop":
            for block in self._model.layers:
                if isinstance(block.mlp, MixtureOfExperts):
                    block.mlp = ExpertLoop(block.mlp)
        self._model.to(spec.device)
        self._masters = Masters(self._model, spec.dtype)
        self._optimizer = torch.optim.AdamW(
            self._masters.parameters, lr=recipe.learning_rates[""], betas=recipe.betas, fused=True
        )

    def describe(self) -> dict[str, int]:
        return {
            "parameters": sum(weight.numel() for weight in self._masters.parameters),
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
        self._take_step(batch)
        self._wait()
        return time.perf_counter() - start, batch.num_targets

    def measure(self, index: int) -> int:
        """Peak bytes, on a step of its own where measuring costs time."""
        with self._memory.measured():
            if self._device.type != "cuda":
                (batch,) = self._data.step(index).batches
                self._take_step(batch)
        return self._memory.peak_bytes

    def _take_step(self, batch: Batch) -> None:
        loss = self._stage.loss(self._model, batch.to(self._device))
        (loss.objective / loss.count).backward()
        self._masters.gather_gradients()
        nn.utils.clip_grad_norm_(self._masters.parameters, self._clipping)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._masters.write_back()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
