"""What the routers of a mixture of experts do: summed up on the device, read once a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.model.moe import MixtureOfExperts
from minimind.model.transformer import Transformer
from minimind.types import LossSum, ModelOutput

logger = logging.getLogger(__name__)

ROUTER_COLUMNS = (
    "aux_loss",
    "router_grad_norm",
    "load_entropy",
    "load_entropy_min",
    "dropped_tokens",
)
"""Of metrics.csv, in a run with experts."""


@dataclass(frozen=True, slots=True)
class RouterNumbers:
    """One optimizer step's, over all its micro-batches and ranks; empty for a dense model."""

    metrics: dict[str, float] = field(default_factory=dict)
    """aux_loss: what the routers added to the loss per target, coefficient included."""
    diagnostics: dict[str, float] = field(default_factory=dict)
    """Norm of the routers' gradient before clipping; entropy of the experts' load, 1 where all of
    a layer's experts take as much and 0 where one takes all: mean and least of the layers."""
    expert_load: dict[int, list[float]] = field(default_factory=dict)
    """By layer, the share of its tokens that each expert took."""


class RouterWatch:
    """Follows the routers of the first model with experts in `module`, through hooks and without
    waiting for the device. Where there is none it gives no numbers."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        models = [part for part in module.modules() if isinstance(part, Transformer)]
        model = next((model for model in models if model.config.num_experts), None)
        routers = {
            layer: block.mlp.gate
            for layer, block in enumerate(model.layers if model else ())
            if isinstance(block.mlp, MixtureOfExperts)
        }
        self._layers = list(routers)
        self._num_experts = model.config.num_experts if model else 0
        self.size = 3 + len(routers) * self._num_experts if model else 0
        """How many numbers `take` gives."""
        # The gradient is kept here too: every ZeRO stage has it elsewhere and in other pieces.
        width = self._num_experts * (model.config.hidden_size if model else 0)
        self._grads = torch.zeros(len(routers), width, device=device)
        # Aux loss times count, dropped tokens, then each layer's load.
        self._sums = torch.zeros(max(self.size - 1, 0), dtype=torch.float64, device=device)
        for gate, grad in zip(routers.values(), self._grads, strict=True):
            if gate.weight.requires_grad:
                gate.weight.register_hook(partial(_add_gradient, grad))
        if model:
            model.register_forward_hook(self._add_load)
            if model.config.router_learns_from_aux_loss_alone:
                logger.warning(
                    "num_experts_per_tok is 1 and norm_topk_prob is true: each token's one weight "
                    "is 1, so that the routers learn from the auxiliary loss alone; --set "
                    "norm_topk_prob=false lets them learn from the loss too"
                )

    def _add_load(self, module: nn.Module, inputs: Any, output: ModelOutput) -> None:
        if (load := output.expert_load) is not None:
            self._sums[1] += load.dropped
            self._sums[2:] += load.tokens_LE.flatten()

    def add(self, loss: LossSum, count: int) -> None:
        """Takes in one micro-batch's loss, after its backward."""
        if self.size and loss.aux_loss is not None:
            self._sums[0] += loss.aux_loss.detach() * count

    def take(self, engine: DeepSpeedEngine) -> Tensor:
        """The step's numbers over all ranks, fp64 [size] on the device; starts anew."""
        if not self.size:
            return self._sums
        grad = engine.sum_over_ranks(self._grads.flatten().clone())
        norm = grad.norm().double() / (engine.ranks.world_size * engine.loss_scale)
        numbers = torch.cat([norm.reshape(1), engine.sum_over_ranks(self._sums.clone())])
        self._grads.zero_()
        self._sums.zero_()
        return numbers

    def read(self, numbers: Sequence[float], count: float) -> RouterNumbers:
        """`numbers`: what `take` gave, on the host; `count`: of the step's targets."""
        if not self.size:
            return RouterNumbers()
        grad_norm, aux_loss, dropped, *tokens = numbers
        load = {}
        for place, layer in enumerate(self._layers):
            row = tokens[place * self._num_experts : (place + 1) * self._num_experts]
            load[layer] = [value / max(sum(row), 1.0) for value in row]
        entropies = [_entropy(shares) for shares in load.values()]
        diagnostics = {
            "router_grad_norm": grad_norm,
            "load_entropy": sum(entropies) / len(entropies),
            "load_entropy_min": min(entropies),
            "dropped_tokens": dropped,
        }
        return RouterNumbers({"aux_loss": aux_loss / max(count, 1.0)}, diagnostics, load)


def _add_gradient(total: Tensor, grad: Tensor) -> None:
    total += grad.flatten()


def _entropy(shares: Sequence[float]) -> float:
    return sum(-x * math.log(x) for x in shares if x > 0) / math.log(len(shares))
