"""The rows of bench.train_step: three ways to take an optimizer step from the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.documents import Documents, PackedSteps, PaddedSteps, StepData, one_row
from bench.original import OriginalModel, original_loss
from minimind.config.deepspeed_json import precision
from minimind.engine.deepspeed_engine import DeepSpeedEngine, start_ranks
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.model.state_dict import split_fused
from minimind.runtime.ranks import read_ranks
from minimind.runtime.seeds import seed_micro_batch
from minimind.stages import STAGES
from minimind.stages.resolve import ResolvedRun
from minimind.types import Batch

ROWS = ("original", "plain_loop", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """All that a worker process needs to build its row."""

    name: str
    ds_config_name: str | None
    """Of an engine row."""
    run: ResolvedRun
    documents: Documents
    original_batch: int
    steps: int
    """Optimizer steps that will be asked for, warm-up included."""

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


def build_row(spec: RowSpec) -> TrainRow:
    """Raises ConfigError for a name that is none of ROWS."""
    rows = {"original": OriginalRow, "plain_loop": PlainLoopRow, "engine": EngineRow}
    if spec.name not in rows:
        raise ConfigError(f"--rows {spec.name}: there is no such row; rows: {', '.join(ROWS)}")
    return rows[spec.name](spec)


class OriginalRow:
    """The same model in fp32 as plain modules, documents padded, AdamW as PyTorch has it."""

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        self.precision = "fp32"
        self._device, self._clipping = run.device.torch_device, run.recipe.gradient_clipping
        self.steps = PaddedSteps(
            spec.documents,
            rows=spec.original_batch,
            accumulation=spec.accumulation,
            steps=spec.steps,
        )
        ours = STAGES[run.stage](run.recipe).build_models(BuildContext(config=run.config)).policy
        self.module = OriginalModel(run.config, spec.documents.max_tokens)
        self.module.load_split(split_fused(run.config, dict(ours.named_parameters())))
        self.module.to(self._device)
        self._optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=run.learning_rate,
            betas=run.recipe.betas,
            eps=run.recipe.adam_eps,
            weight_decay=run.recipe.weight_decay,
        )

    def data(self, index: int) -> StepData[tuple[Tensor, Tensor]]:
        return self.steps.step(index)

    def step(self, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        total = torch.zeros((), device=self._device)
        for ids_BT, labels_BT in batches:
            ids_BT, labels_BT = ids_BT.to(self._device), labels_BT.to(self._device)
            loss = original_loss(self.module(ids_BT), labels_BT) / len(batches)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.module.parameters(), self._clipping or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


class PlainLoopRow:
    """Our model and loss in a bare loop: in bf16 with fp32 masters and fp32 accumulation."""

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        self.precision = precision(run.ds_config)
        if self.precision == "fp16":
            raise ConfigError(
                f"the row plain_loop has no loss scaling, and {spec.ds_config_name} trains in fp16 "
                "here: give --precision, or --rows without plain_loop"
            )
        self._device, self._recipe = run.device.torch_device, run.recipe
        self._steps = _packed_steps(spec)
        self._stage = STAGES[run.stage](run.recipe)
        self.module = self._stage.build_models(BuildContext(config=run.config)).policy.to(
            self._device
        )
        self._weights = list(self.module.parameters())
        self._masters = self._weights
        if self.precision == "bf16":
            self._masters = [weight.detach().clone() for weight in self._weights]
            self.module.to(torch.bfloat16)
        self._optimizer = torch.optim.AdamW(
            self._masters,
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
            (loss.total / count).backward()
            total += loss.total.detach() / count
            if self._masters is not self._weights:
                self._gather_gradients()
        nn.utils.clip_grad_norm_(self._masters, self._recipe.gradient_clipping or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._masters is not self._weights:
            with torch.no_grad():
                for weight, master in zip(self._weights, self._masters, strict=True):
                    weight.copy_(master)
        return total

    def _gather_gradients(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            assert weight.grad is not None
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None


class EngineRow:
    """Our model and loss in DeepSpeed's engine, called as engine/loop.py calls it."""

    def __init__(self, spec: RowSpec) -> None:
        run, ranks = spec.run, read_ranks()
        self.precision = precision(run.ds_config)
        self._recipe, self._learning_rate = run.recipe, run.learning_rate
        self._steps = _packed_steps(spec)
        self._stage = STAGES[run.stage](run.recipe)
        start_ranks(ranks, run.device)
        self.module = self._stage.build_models(BuildContext(config=run.config)).policy
        self.module.to(run.device.torch_device)
        self._engine = DeepSpeedEngine(self.module, run.ds_config, run.recipe, run.device, ranks)
        self._engine.train()
        self._num_steps = 0

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


def _packed_steps(spec: RowSpec) -> PackedSteps:
    run = spec.run
    return PackedSteps(
        spec.documents,
        seq_len=run.seq_len,
        micro_batch=run.micro_batch_size,
        accumulation=spec.accumulation,
    )


def compare_first_losses(spec: RowSpec) -> tuple[float, float]:
    """The loss of `original` and of our model on its first documents: padded there, packed here,
    both in fp32 from the weights that every row starts from."""
    run, device = spec.run, spec.run.device.torch_device
    row = OriginalRow(spec)
    stage = STAGES[run.stage](run.recipe)
    ours = stage.build_models(BuildContext(config=run.config)).policy.to(device)
    first = row.steps.ids(0)[: spec.original_batch]
    batch = one_row(first, spec.documents.pad_id).to(device)
    ids_BT, labels_BT = (x.to(device) for x in row.data(0).batches[0])
    with torch.no_grad():
        loss = stage.loss(ours, batch)
        return float(original_loss(row.module(ids_BT), labels_BT)), float(loss.total / loss.count)
