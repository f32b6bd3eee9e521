"""Defines the rows of bench.train over padded batches: other implementations on the same
documents."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from bench.train.documents import PaddedSteps
from bench.train.original import OriginalModel, original_loss
from bench.train.specs import RowSpec
from minimind.config.deepspeed_json import precision
from minimind.config.model import ModelConfig
from minimind.data.prefetch import prefetched
from minimind.errors import ConfigError
from minimind.model.hf_config import to_hf_config
from minimind.model.state_dict import split_fused
from minimind.run.build import build_schedule, build_trained
from minimind.types import IGNORE_INDEX

logger = logging.getLogger(__name__)


class OriginalRow:
    """Trains plain modules in fp32 on padded documents with PyTorch's AdamW."""

    fused_adamw = False
    autocasts = False
    """Whether it autocasts to bf16 where the run trains in bf16."""
    kernels = "PyTorch"
    answers: Any = None
    """See TrainRow."""

    def __init__(self, spec: RowSpec) -> None:
        run, documents = spec.run, spec.documents
        assert documents is not None, "a row of pretraining"
        in_bf16 = self.autocasts and precision(run.ds_config) == "bf16"
        self.precision = "bf16" if in_bf16 else "fp32"
        self._device, self._clipping = run.device.torch_device, run.recipe.gradient_clipping
        self.steps = PaddedSteps(
            documents, rows=spec.original_batch, accumulation=spec.accumulation, steps=spec.steps
        )
        # Built ahead of their use, in the background, as the loader of a training run does.
        steps = map(self.steps.step, itertools.count())
        self._batches = prefetched(step.batches for step in steps)
        ours = build_trained(run).models.policy
        weights = split_fused(run.config, dict(ours.named_parameters()))
        module = self.build_module(run.config, weights, documents.max_tokens, self._device)
        self._start(spec, module)

    def _start(self, spec: RowSpec, module: nn.Module) -> None:
        run, self.module = spec.run, module
        self._rates = map(build_schedule(run, spec.steps), itertools.count())
        self._optimizer = torch.optim.AdamW(
            self.module.parameters(),
            betas=run.recipe.betas,
            eps=run.recipe.adam_eps,
            weight_decay=run.recipe.weight_decay,
            fused=self.fused_adamw or None,
        )

    def build_module(
        self, config: ModelConfig, weights: dict[str, Tensor], length: int, device: torch.device
    ) -> nn.Module:
        """Makes the model for rows of `length` and loads `weights`, which have Hugging Face's
        names."""
        module = OriginalModel(config, length)
        module.load_split(weights)
        return module.to(device)

    def loss(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """Computes the mean cross-entropy over the targets of a padded batch."""
        return original_loss(self.module(ids_BT), labels_BT)

    def step(self) -> Tensor:
        batches = next(self._batches)
        total = torch.zeros((), device=self._device)
        in_bf16 = torch.autocast(
            self._device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        for ids_BT, labels_BT in batches:
            with in_bf16:
                loss = self.loss(ids_BT.to(self._device), labels_BT.to(self._device))
            (loss / len(batches)).backward()
            total += loss.detach() / len(batches)
        self._update()
        return total

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), self._clipping or float("inf"))
        for group in self._optimizer.param_groups:
            group["lr"] = next(self._rates)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class CompiledRow(OriginalRow):
    """Trains with PyTorch's own means: torch.compile, bf16 by autocast, the fused AdamW."""

    fused_adamw = True
    autocasts = True

    def build_module(
        self, config: ModelConfig, weights: dict[str, Tensor], length: int, device: torch.device
    ) -> nn.Module:
        module = super().build_module(config, weights, length, device)
        module.compile()
        return module


class TransformersRow(OriginalRow):
    """Trains the model of `transformers` with bf16 by autocast and the fused AdamW; on a GPU with
    Liger's kernels."""

    fused_adamw = True
    autocasts = True

    def build_module(
        self, config: ModelConfig, weights: dict[str, Tensor], length: int, device: torch.device
    ) -> nn.Module:
        values: dict[str, Any] = to_hf_config(config)
        try:
            import transformers

            kind = transformers.AutoConfig.for_model(**values)
            module = transformers.AutoModelForCausalLM.from_config(kind)
        except ImportError as error:
            raise ConfigError(
                f"the row transformers needs {error.name}: pip install -e '.[interop,bench]'"
            ) from None
        except ValueError:
            raise ConfigError(
                f"the row transformers: it has no {values['model_type']}; leave it out of --rows"
            ) from None
        if device.type == "cuda":
            self.kernels = _apply_liger(module)
        module.load_state_dict(weights, strict=False)  # a tied head has no name of its own
        return module.to(device)

    def loss(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        # The model shifts the labels itself. Rows are padded at their ends, so causal attention
        # needs no further mask.
        unshifted_BT = torch.full_like(labels_BT, IGNORE_INDEX)
        unshifted_BT[:, 1:] = labels_BT[:, :-1]
        return self.module(input_ids=ids_BT, labels=unshifted_BT, use_cache=False).loss


def _apply_liger(module: nn.Module) -> str:
    """Gives the model Liger's kernels where the package is installed, and names the kernels that it
    then has."""
    try:
        from liger_kernel.transformers import (  # type: ignore[import-not-found]
            _apply_liger_kernel_to_instance,
        )
    except ImportError:
        logger.warning("the row transformers has PyTorch's kernels: liger-kernel is not installed")
        return "PyTorch"
    _apply_liger_kernel_to_instance(module)
    return "Liger-Kernel"


PADDED_ROWS: dict[str, type[OriginalRow]] = {
    "original": OriginalRow,
    "compiled": CompiledRow,
    "transformers": TransformersRow,
}


def is_padded(spec: RowSpec) -> bool:
    """Tells whether the row pads the documents that others pack."""
    return spec.documents is not None and spec.name in PADDED_ROWS
