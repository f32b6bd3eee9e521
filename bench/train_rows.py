"""The rows of bench.train_step: a stage in a bare loop and in DeepSpeed's engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from bench.documents import Documents, PackedSteps, StepData
from bench.loaded_steps import LoadedSteps
from bench.masters import Masters
from minimind.config.deepspeed_json import precision
from minimind.engine.deepspeed_engine import DeepSpeedEngine, start_ranks
from minimind.engine.stage import BuildContext, Loader, Stage, StageModels
from minimind.errors import ConfigError
from minimind.run.inputs import load_start
from minimind.run.resolve import ResolvedRun, find_tokenizer
from minimind.runtime.ranks import read_ranks
from minimind.runtime.seeds import seed_micro_batch
from minimind.stages import STAGES
from minimind.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """All that a worker process needs to build its row."""

    name: str
    ds_config_name: str | None
    """Of a row in the engine."""
    run: ResolvedRun
    documents: Documents | None
    """None: the run's own data."""
    original_batch: int
    steps: int
    """Optimizer steps that will be asked for, all told."""

    @property
    def accumulation(self) -> int:
        return int(self.run.ds_config["gradient_accumulation_steps"])


class TrainRow(Protocol):
    precision: str
    module: nn.Module

    def data(self, index: int) -> StepData[Any]:
        """The micro-batches of step `index`, on the host."""
        ...

    def step(self, batches: list[Any]) -> Tensor:
        """One optimizer step; its mean loss, which is not waited for."""
        ...


def read_steps(spec: RowSpec) -> PackedSteps | LoadedSteps:
    run = spec.run
    if spec.documents is None:
        return LoadedSteps(run, find_tokenizer(run.arguments), spec.steps)
    return PackedSteps(
        spec.documents,
        seq_len=run.seq_len,
        micro_batch=run.micro_batch_size,
        accumulation=spec.accumulation,
    )


def build_models(spec: RowSpec, stage: Stage[Any], steps: PackedSteps | LoadedSteps) -> StageModels:
    """As launch/train.py does, the policy on its device."""
    run = spec.run
    has_data = isinstance(steps, LoadedSteps)
    models = stage.build_models(
        BuildContext(
            config=run.config,
            weights=load_start(run),
            weights_folder=run.weights_folder,
            device=run.device.torch_device,
            dtype=run.dtype,
            tokenizer=find_tokenizer(run.arguments) if has_data else None,
            loader=cast(Loader[Any], steps) if has_data else None,
        )
    )
    models.policy.to(run.device.torch_device)
    return models


class PlainLoopRow:
    """A stage in a bare loop: in bf16 with fp32 masters and fp32 accumulation."""

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        self.precision = precision(run.ds_config)
        if self.precision == "fp16":
            raise ConfigError(
                f"the row plain_loop has no loss scaling, and {spec.ds_config_name} trains in fp16 "
                "here: give --precision, or --rows without plain_loop"
            )
        self._device, self._recipe = run.device.torch_device, run.recipe
        self._steps, self._stage = read_steps(spec), STAGES[run.stage](run.recipe)
        self.module = build_models(spec, self._stage, self._steps).policy
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._masters = Masters(self.module, dtype)
        self._optimizer = torch.optim.AdamW(
            self._masters.parameters,
            lr=run.learning_rate,
            betas=run.recipe.betas,
            eps=run.recipe.adam_eps,
            weight_decay=run.recipe.weight_decay,
            fused=True,
        )

    def data(self, index: int) -> StepData[Batch]:
        return self._steps.step(index)

    def step(self, batches: list[Batch]) -> Tensor:
        total = torch.zeros((), device=self._device)
        count = max(1, sum(self._stage.count(batch) for batch in batches))
        for batch in batches:
            loss = self._stage.loss(self.module, batch.to(self._device))
            (loss.objective / count).backward()
            total += loss.total.detach() / count
            self._masters.gather_gradients()
        nn.utils.clip_grad_norm_(
            self._masters.parameters, self._recipe.gradient_clipping or float("inf")
        )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._masters.write_back()
        return total


class EngineRow:
    """A stage in DeepSpeed's engine, called as engine/loop.py calls it."""

    def __init__(self, spec: RowSpec) -> None:
        run, ranks = spec.run, read_ranks()
        self.precision = precision(run.ds_config)
        self._recipe, self._learning_rate = run.recipe, run.learning_rate
        self._steps, self._stage = read_steps(spec), self.build_stage(run)
        start_ranks(ranks, run.device)
        self.module = build_models(spec, self._stage, self._steps).policy
        self._engine = DeepSpeedEngine(self.module, run.ds_config, run.recipe, run.device, ranks)
        self._engine.train()
        self._num_steps = 0

    def build_stage(self, run: ResolvedRun) -> Stage[Any]:
        return STAGES[run.stage](run.recipe)

    def data(self, index: int) -> StepData[Batch]:
        return self._steps.step(index)

    def step(self, batches: list[Batch]) -> Tensor:
        engine = self._engine
        batches = [batch.to(engine.device) for batch in batches]
        count = float(sum(self._stage.count(batch) for batch in batches))
        counts = torch.tensor([count], dtype=torch.float64).to(engine.device, non_blocking=True)
        counts = engine.sum_over_ranks(counts)
        engine.start_step(counts[0].float())
        sums = torch.zeros(1, device=engine.device)
        for index, batch in enumerate(batches):
            seed_micro_batch(self._recipe.seed, self._num_steps, index)
            loss = self._stage.loss(engine, batch)
            engine.backward(loss)
            sums += loss.total.detach()
        engine.step(None if engine.has_scheduler else self._learning_rate)
        self._num_steps += 1
        return engine.sum_over_ranks(sums)[0] / count
