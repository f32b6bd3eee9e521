"""Makes adapters small enough for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.lora.adapter import Adapter, LoraPart
from minimind.lora.model import add_adapters
from minimind.model.state_dict import linear_parts
from minimind.model.transformer import Transformer

EXPERTS: dict[str, Any] = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}
"""The fields of a model whose experts have adapters."""
UNEQUAL = {"q_proj": 3, "v_proj": 5, "o_proj": 2, "gate_proj": 4, "up_proj": 1, "down_proj": 7}
"""The rank by the last word of a linear's name; k_proj has no adapter."""


def ranks_of(config: ModelConfig, kinds: Mapping[str, int]) -> dict[str, int]:
    """Gives the ranks by the linears' full names."""
    names = [part.name for parts in linear_parts(config).values() for part in parts]
    chosen = {name: kinds.get(name.rpartition(".")[2], 0) for name in names}
    return {name: rank for name, rank in chosen.items() if rank}


def random_adapter(
    config: ModelConfig, kinds: Mapping[str, int] = UNEQUAL, seed: int = 0
) -> dict[str, LoraPart]:
    """Makes an adapter large enough to change every output visibly."""
    generator = torch.Generator().manual_seed(seed)
    parts = {part.name: part for parts in linear_parts(config).values() for part in parts}
    adapter = {}
    for name, rank in ranks_of(config, kinds).items():
        a_RI = 0.2 * torch.randn(rank, parts[name].num_columns, generator=generator)
        b_OR = 0.2 * torch.randn(parts[name].num_rows, rank, generator=generator)
        adapter[name] = LoraPart(a_RI, b_OR, 1.5 * rank)
    return adapter


def adapted(model: Transformer, kinds: Mapping[str, int] = UNEQUAL, seed: int = 0) -> Transformer:
    """Adds adapters to the model, with values as after some training."""
    ranks = ranks_of(model.config, kinds)
    add_adapters(model, ranks, {name: 1.5 * rank for name, rank in ranks.items()}, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def explicit_sum(
    tensors: Mapping[str, Tensor], *scaled: tuple[Adapter, float]
) -> dict[str, Tensor]:
    """Gives Hugging Face's tensors with W + Σ scale · alpha/r · B·A, in fp64."""
    summed = {name: tensor.double() for name, tensor in tensors.items()}
    for adapter, scale in scaled:
        for name, part in adapter.items():
            product = part.b_OR.double() @ part.a_RI.double()
            key = f"{name}.weight"
            summed[key] = summed[key] + scale * part.alpha / len(part.a_RI) * product
    return summed
