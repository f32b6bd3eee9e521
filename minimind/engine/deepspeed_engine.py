"""Defines the engine: a model and its optimizer, trained by DeepSpeed on all ranks. Only this file
imports DeepSpeed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimind.config.deepspeed_json import precision, zero_stage
from minimind.config.monitors import without_monitors
from minimind.config.recipe import Recipe
from minimind.engine import replicated
from minimind.engine.bare_module import without_hooks
from minimind.engine.clipping import clip_on_device, clip_replicated
from minimind.engine.muon import Muon, initialize_arguments
from minimind.engine.operators import announced_operators
from minimind.engine.overlap import wait_between_streams
from minimind.engine.parameter_groups import trained_parameters
from minimind.engine.refusals import refusals
from minimind.engine.saved_states import SavedStates, set_states
from minimind.engine.shards import drop_frozen, meeting_at_the_end, reading_together
from minimind.engine.state_layout import find_layout
from minimind.errors import CheckpointError
from minimind.runtime.devices import Device
from minimind.runtime.ranks import Ranks
from minimind.runtime.together import gather
from minimind.types import Batch, HeadFn, LossSum, ModelOutput

TAG = "engine"
"""The folder in a checkpoint that holds DeepSpeed's own files."""


def import_deepspeed(device: Device) -> Any:
    """Imports DeepSpeed late, since the import takes seconds, and quietly, since it logs which
    accelerator it found."""
    if device.kind == "cpu" or not torch.cuda.is_available():  # a dry run's GPU may be elsewhere
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DS_LOG_LEVEL", "ERROR")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if device.kind == "cpu":
        # A GPU has no such operator: there this import would try all others and warn of each.
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # half a minute to compile
    return deepspeed


def check_ds_config(ds_config: Mapping[str, Any], device: Device) -> None:
    """Raises ConfigError for a resolved JSON that DeepSpeed's own schemas refuse. Joins no
    ranks."""
    deepspeed = import_deepspeed(device)
    config = without_monitors(ds_config)
    if zero_stage(config) == 0:
        config = replicated.left_to_deepspeed(config)
    config.pop("train_batch_size")  # it counts all ranks, which may not have joined yet
    with refusals(deepspeed):
        deepspeed.DeepSpeedConfig(config)


class DeepSpeedEngine:
    """Trains `module`. Call it as the stage's policy: `engine(batch, head=…)`.

    An optimizer step is `start_step(total_count)`, then `backward(loss, count)` for each
    micro-batch, then `step(learning_rate)`. Its gradient is that of the sum of all losses divided
    by the sum of all counts, over all ranks and micro-batches of the step.
    """

    def __init__(
        self,
        module: nn.Module,
        ds_config: Mapping[str, Any],
        recipe: Recipe,
        device: Device,
        ranks: Ranks,
    ) -> None:
        check_ds_config(ds_config, device)
        deepspeed = import_deepspeed(device)
        self.module = module
        self.device = device.torch_device
        self.ranks = ranks
        self.recipe = recipe
        self.precision = precision(ds_config)
        self.grad_norm = torch.zeros(())
        """The last step's gradient norm, after clip_value, before its limit; fp32 scalar."""
        self.zero_stage = zero_stage(ds_config)
        self._accumulation = int(ds_config["gradient_accumulation_steps"])
        config = without_monitors(ds_config)
        self._clipping = float(config.get("gradient_clipping", 1.0))
        if self.zero_stage == 0:
            config = replicated.left_to_deepspeed(config)
        # ZeRO makes its fp32 masters from the module after casting it to 16 bits.
        exact = {name: p.detach().clone() for name, p in trained_parameters(self.module)}
        first_step, said = replicated.without_first_step(deepspeed), announced_operators(deepspeed)
        given = initialize_arguments(module, recipe, config, self.precision)
        with refusals(deepspeed), first_step, said, _silenced():
            self._engine, *_ = deepspeed.initialize(model=module, dist_init_required=False, **given)
        if isinstance(muon := given.get("optimizer"), Muon):
            layout = find_layout(self._engine.optimizer, self.zero_stage, module)
            muon.place(layout, is_spread=self.zero_stage > 0)
        self._apart = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._masters: dict[nn.Parameter, Tensor] = {}
        """fp32 masters that DeepSpeed's own accessors do not find."""
        self._skips = recipe.skip_steps > 0
        if self.zero_stage > 0:
            clip_on_device(self._engine.optimizer, recipe.clip_value, skips=self._skips)
            wait_between_streams(self._engine.optimizer)
        elif self.precision != "fp32":
            optimizer = self._engine.optimizer
            self._masters = replicated.mend(module, optimizer, config, skips=self._skips)
        if self.precision != "fp32":
            self._set_masters(exact)

    def _set_masters(self, exact: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in trained_parameters(self.module):
            value = exact[name].float().to(self.device)
            if parameter in self._masters:
                self._masters[parameter].data.copy_(value)
            else:
                safe_set_full_fp32_param(parameter, value)

    def __call__(self, batch: Batch, head: HeadFn) -> ModelOutput:
        return self._engine(batch, head)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    @property
    def has_scheduler(self) -> bool:
        """Tells whether the DeepSpeed JSON has a learning-rate scheduler."""
        return self._engine.lr_scheduler is not None

    @property
    def learning_rate(self) -> float:
        return float(self._engine.optimizer.param_groups[0]["lr"])

    @property
    def loss_scale(self) -> float:
        """Gives the factor by which fp16 gradients are multiplied until the step divides by it; 1
        in other dtypes."""
        return float(getattr(self._engine.optimizer, "loss_scale", None) or 1.0)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sums a 1-D tensor on the engine's device over all ranks, in place, without waiting for a
        GPU."""
        if self.ranks.world_size > 1:
            dist.all_reduce(values)
        return values

    def any_rank(self, flag: bool) -> bool:
        """Tells whether `flag` is true on any rank. All ranks call it and wait for one another."""
        return bool(self.sum_over_ranks(torch.tensor([float(flag)], device=self.device)).item())

    def gather_texts(self, texts: Sequence[str]) -> list[str]:
        """Gives every rank's strings, in the order of the ranks. All ranks call it."""
        return [text for theirs in gather(list(texts)) for text in theirs]

    def gather_apart(self, texts: Sequence[str]) -> list[str]:
        """Gives every rank's strings as `gather_texts` does, but over separate connections, so that
        one background thread of each rank may call it while the ranks train."""
        return [text for theirs in gather(list(texts), self._apart) for text in theirs]

    def start_step(self, total_count: Tensor) -> None:
        """Begins a step. `total_count` is an fp32 scalar on the device: the sum of the counts of
        all the step's micro-batches over all ranks."""
        # DeepSpeed averages over ranks; at stage 0 it also divides by a loss scale never applied.
        loss_scale = self.loss_scale if self.zero_stage == 0 else 1.0
        self._scale = self.ranks.world_size * loss_scale / total_count.clamp(min=1.0)
        self._micro_batches = 0

    def backward(self, loss: LossSum, count: int) -> None:
        """Adds the gradient of one micro-batch's loss; `count` is the micro-batch's count."""
        self._micro_batches += 1
        self._engine.set_gradient_accumulation_boundary(self._micro_batches == self._accumulation)
        self._engine.backward(loss.objective(count) * self._scale, scale_wrt_gas=False)
        if self._micro_batches < self._accumulation:
            self._engine.step()

    def step(self, learning_rate: float | None) -> None:
        """Clips the gradient and updates the weights. With `learning_rate` None the JSON's
        scheduler sets the rate."""
        assert self._micro_batches == self._accumulation, "a step's micro-batches are all due"
        if learning_rate is not None:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        norm = None
        if self.zero_stage == 0:
            limits = self._clipping, self.recipe.clip_value
            norm = clip_replicated(self.module, *limits, self.loss_scale)
            if self._skips and self.precision == "fp32" and not norm.isfinite():
                self.module.zero_grad()
                self.grad_norm = norm.float()
                return
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        self.grad_norm = torch.as_tensor(norm, dtype=torch.float32)

    def full_weights(self) -> dict[str, Tensor]:
        """Gives the trained parameters' fp32 masters by name, on the CPU, under any ZeRO stage. All
        ranks call it; only rank 0 gets the tensors, the others get an empty dict."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensor] = {}
        problem: Exception | None = None
        for name, parameter in trained_parameters(self.module):
            full = self._masters.get(parameter)
            full = safe_get_full_fp32_param(parameter) if full is None else full
            full = parameter.detach() if full is None else full
            if self.ranks.is_main and problem is None:
                try:
                    weights[name] = full.detach().to("cpu", torch.float32, copy=True)
                except Exception as error:  # no memory; the other ranks wait in the next gathering
                    problem = error
        if problem is not None:
            raise problem
        return weights

    @contextlib.contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """Yields the module without hooks and with complete weights, for generation. All ranks
        enter the block."""
        import deepspeed

        parameters = list(self.module.parameters()) if self.zero_stage == 3 else []
        whole = deepspeed.zero.GatheredParameters(parameters)
        with whole, without_hooks(self.module), torch.no_grad():
            self._engine.eval()
            yield self.module
        self._engine.train()

    def close(self) -> None:
        """Removes DeepSpeed's hooks from the module and its state from the process."""
        self._engine.destroy()

    def save(self, folder: Path) -> None:
        """Writes every rank's shard into folder/engine, without the frozen parameters. All ranks
        call it. A rank that cannot write raises its error only after it has met the others at the
        end."""
        hook = self.module.register_state_dict_post_hook(drop_frozen)
        with hook, meeting_at_the_end(self._engine):
            self._engine.save_checkpoint(
                str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
            )

    def set_states(self, states: SavedStates, step: int) -> None:
        """Sets the states of the optimizer and of the JSON's scheduler, as they are after `step`
        steps. The weights must have been set before the engine took the module."""
        set_states(self._engine.optimizer, self.zero_stage, self.module, states)
        if self.has_scheduler and states.scheduler:
            self._engine.lr_scheduler.load_state_dict(states.scheduler)
        self._engine.global_steps = step

    def load(self, folder: Path) -> None:
        """Loads a checkpoint's shards. All ranks call it, and all raise CheckpointError where
        DeepSpeed cannot read its own files on any of them."""
        # DeepSpeed would restore the options that the parameter groups were saved with; a resumed
        # run may have others.
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self._engine.optimizer.param_groups
        ]
        with _silenced(), reading_together(self._engine, folder):
            # A strict load would miss the frozen parameters.
            path, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        if path is None:
            raise CheckpointError(f"{folder}: holds no DeepSpeed checkpoint")
        for group, given in zip(self._engine.optimizer.param_groups, options, strict=True):
            group.update(given)


def _silenced() -> contextlib.AbstractContextManager[Any]:
    """Hides what DeepSpeed prints instead of logging."""
    return contextlib.redirect_stdout(io.StringIO())
