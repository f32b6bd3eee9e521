"""Trains without DeepSpeed: a stage's optimizer step in a bare loop, with a stand-in for the
engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from minimind.config.deepspeed_optimizers import is_muon
from minimind.config.recipe import Recipe
from minimind.engine.muon import Muon
from minimind.engine.parameter_groups import parameter_groups, trained_matrices
from minimind.engine.stage import Stage
from minimind.engine.state_layout import whole_layout
from minimind.runtime.ranks import Ranks
from minimind.types import Batch, HeadFn, ModelOutput


class BareEngine:
    """Has the engine's methods that stages call, on one rank."""

    ranks = Ranks(0, 0, 1)

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device

    def __call__(self, batch: Batch, head: HeadFn) -> ModelOutput:
        return self.module(batch, head)

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values

    def any_rank(self, flag: bool) -> bool:
        return flag

    @contextlib.contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        with torch.no_grad():
            self.module.eval()
            yield self.module
        self.module.train()


class Masters:
    """Holds the weights that the optimizer updates: fp32 copies, or fp32 weights themselves."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Casts `module`, which is in fp32, to `dtype`."""
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.parameters = self._weights
        if dtype != torch.float32:
            self.parameters = [nn.Parameter(weight.detach().clone()) for weight in self._weights]
            module.to(dtype)

    def optimizer(self, module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Builds the recipe's optimizer for the masters, grouped as the engine groups the
        weights."""
        masters: dict[Tensor, nn.Parameter] = dict(zip(self._weights, self.parameters, strict=True))
        groups = [
            {**group, "params": [masters[p] for p in group["params"]]}
            for group in parameter_groups(module, recipe)
        ]
        options: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.adam_eps, "fused": True}
        if not is_muon(recipe.optimizer):
            return torch.optim.AdamW(groups, **options)
        matrices = trained_matrices(module).items()
        rows: dict[Tensor, Any] = {masters[weight]: sizes for weight, sizes in matrices}
        muon = Muon(groups, rows, dtype=self._weights[0].dtype, **options)
        muon.place(whole_layout(self.parameters))
        return muon

    def gather_gradients(self) -> None:
        """Adds the weights' gradients of one backward to those of the masters, in fp32."""
        if self.parameters is self._weights:
            return
        for weight, master in zip(self._weights, self.parameters, strict=True):
            assert weight.grad is not None
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Rounds the updated masters to the weights."""
        if self.parameters is not self._weights:
            for weight, master in zip(self._weights, self.parameters, strict=True):
                weight.copy_(master)


class PlainTraining:
    """Trains a stage's model in a bare loop with the recipe's optimizer; in 16 bits with fp32
    masters and fp32 sums of gradients."""

    def __init__(
        self,
        stage: Stage[Any, Any],
        module: nn.Module,
        recipe: Recipe,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._stage, self._module, self._device = stage, module, device
        self._engine = cast(Any, BareEngine(module, device))
        self._clipping = recipe.gradient_clipping or float("inf")
        self._num_steps = 0
        self.masters = Masters(module, dtype)
        self._optimizer = self.masters.optimizer(module, recipe)

    def step(self, batches: list[Any], learning_rate: float) -> Tensor:
        """Takes one step: the update, or the several, that the stage prepares from these
        micro-batches. Gives the mean loss as a tensor, without waiting for the device."""
        moved = [batch.to(self._device) for batch in batches]
        losses = [
            self._take_update(prepared, learning_rate)
            for prepared in self._stage.prepare(self._engine, moved, self._num_steps)
        ]
        self._num_steps += 1
        return torch.stack(losses or [torch.zeros((), device=self._device)]).mean()

    def _take_update(self, batches: list[Any], learning_rate: float) -> Tensor:
        total = torch.zeros((), device=self._device)
        count = max(1, sum(batch.count for batch in batches))
        for batch in batches:
            loss = self._stage.loss(self._module, batch)
            (loss.objective(batch.count) / count).backward()
            total += loss.total.detach() / count
            self.masters.gather_gradients()
        nn.utils.clip_grad_norm_(self.masters.parameters, self._clipping)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.masters.write_back()
        return total
