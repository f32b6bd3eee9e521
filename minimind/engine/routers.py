"""Measures the routers of a mixture of experts: sums are kept on the device and read once a
step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.pending import RouterNumbers, StepNumbers
from minimind.model.moe import MixtureOfExperts
from minimind.model.router_report import RouterReport
from minimind.model.transformer import Transformer
from minimind.types import LossSum, StepStats

logger = logging.getLogger(__name__)

ROUTER_COLUMNS = (
    "aux_loss",
    "router_grad_norm",
    "load_entropy",
    "load_entropy_min",
    "dropped_tokens",
)
"""The columns of metrics.csv that a run with experts adds."""


class RouterWatch:
    """Measures the routers of the first model with experts in `module`, through hooks and without
    waiting for the device. Without such a model it measures nothing."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        models = [part for part in module.modules() if isinstance(part, Transformer)]
        model = next((model for model in models if model.config.num_experts), None)
        mixtures = {
            layer: block.mlp
            for layer, block in enumerate(model.layers if model else ())
            if isinstance(block.mlp, MixtureOfExperts)
        }
        self._layers = list(mixtures)
        if model is None:
            return
        num_experts, hidden = model.config.num_experts, model.config.hidden_size
        # The gradient is kept here too, because each ZeRO stage stores it elsewhere and in other
        # pieces.
        self._grads = torch.zeros(len(mixtures), num_experts * hidden, device=device)
        zero = torch.zeros((), dtype=torch.float64)
        tokens_LE = zero.new_zeros(len(mixtures), num_experts)
        sums = RouterNumbers(aux_loss=zero, dropped=zero, tokens_LE=tokens_LE)
        self._flat = sums.flat().to(device)
        self._sums = sums.over(self._flat)
        for mixture, grad in zip(mixtures.values(), self._grads, strict=True):
            if mixture.gate.weight.requires_grad:
                mixture.gate.weight.register_hook(partial(_add_gradient, grad))
        # After the last layer with experts, the report holds all layers.
        mixtures[self._layers[-1]].register_forward_hook(self._add_load)
        if model.config.router_learns_from_aux_loss_alone:
            logger.warning(
                "num_experts_per_tok is 1 and norm_topk_prob is true: each token's one weight "
                "is 1, so that the routers learn from the auxiliary loss alone; --set "
                "norm_topk_prob=false lets them learn from the loss too"
            )

    def _add_load(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        report: RouterReport | None = inputs[1]
        if report is not None and report.is_open:
            tokens_LE, dropped = report.count_load()
            self._sums.dropped.add_(dropped)
            self._sums.tokens_LE.add_(tokens_LE)

    def add(self, loss: LossSum, count: int) -> None:
        """Adds the auxiliary loss of one micro-batch, after its backward."""
        if self._layers and loss.aux_loss is not None:
            self._sums.aux_loss.add_(loss.aux_loss.detach() * count)

    def take(self, engine: DeepSpeedEngine) -> RouterNumbers | None:
        """Gives the numbers since the last call, summed over all ranks, on the device; None for a
        dense model."""
        if not self._layers:
            return None
        grad = engine.sum_over_ranks(self._grads.flatten().clone())
        norm = grad.norm().double() / (engine.ranks.world_size * engine.loss_scale)
        summed = self._sums.over(engine.sum_over_ranks(self._flat.clone()))
        self._grads.zero_()
        self._flat.zero_()
        return replace(summed, grad_norm=norm)

    def describe(self, stats: StepStats, found: StepNumbers) -> StepStats:
        """Adds the routers' numbers to the step's `stats`. `found` holds them for all micro-batches
        and ranks, on the host. aux_loss is given per target. The entropy of a layer's load is 1
        where all experts take equally many tokens and 0 where one takes all."""
        routers = found.routers
        if routers is None or routers.grad_norm is None:
            return stats
        load = {
            layer: [value / max(sum(tokens), 1.0) for value in tokens]
            for layer, tokens in zip(self._layers, routers.tokens_LE.tolist(), strict=True)
        }
        entropies = [_entropy(shares) for shares in load.values()]
        aux_loss = float(routers.aux_loss) / max(float(found.count), 1.0)
        diagnostics = {
            "router_grad_norm": float(routers.grad_norm),
            "load_entropy": sum(entropies) / len(entropies),
            "load_entropy_min": min(entropies),
            "dropped_tokens": float(routers.dropped),
        }
        return replace(
            stats,
            metrics={**stats.metrics, "aux_loss": aux_loss},
            diagnostics={**diagnostics, **stats.diagnostics},
            expert_load=load,
        )


def _add_gradient(total: Tensor, grad: Tensor) -> None:
    total += grad.flatten()


def _entropy(shares: Sequence[float]) -> float:
    return sum(-x * math.log(x) for x in shares if x > 0) / math.log(len(shares))
