"""Adds adapters to a model, and removes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from minimind.lora.adapter import LoraPart
from minimind.lora.experts import LoraExperts
from minimind.lora.linear import FusedAdapter, LoraLinear, PartSpec, split_parts
from minimind.model.moe import MixtureOfExperts
from minimind.model.state_dict import linear_parts
from minimind.model.transformer import Transformer
from minimind.runtime.seeds import derive_seed

INIT_STD = 0.02
"""The standard deviation of a new A. B starts at zero, so that a new adapter changes nothing."""


def add_adapters(
    model: Transformer, ranks: Mapping[str, int], alphas: Mapping[str, float], seed: int
) -> None:
    """Freezes the model and adds new adapters to its linears, in fp32.

    `ranks` (above 0) and `alphas` are by Hugging Face's names of the linears. A is drawn from N(0,
    0.02²), with the same numbers on every device and whichever other linears have adapters; B = 0.
    """
    model.requires_grad_(False)
    fresh: dict[str, FusedAdapter] = {}
    for name, parts in linear_parts(model.config).items():
        specs = tuple(PartSpec(p, ranks[p.name], alphas[p.name]) for p in parts if p.name in ranks)
        if specs:
            device = model.get_parameter(name).device
            a_RI = torch.cat([_init_a(spec, seed) for spec in specs]).to(device)
            b_flat = torch.zeros(sum(spec.num_b for spec in specs), device=device)
            fresh[name] = FusedAdapter(specs, a_RI, b_flat)
    attach(model, fresh)


def _init_a(spec: PartSpec, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, spec.part.name))
    a_RI = torch.empty(spec.rank, spec.part.num_columns)
    return a_RI.normal_(0.0, INIT_STD, generator=generator)


def attach(model: Transformer, adapters: Mapping[str, FusedAdapter]) -> None:
    """Adds adapters, given by the names of the tensors they change, to a model that has none."""
    mixtures: dict[str, dict[str, FusedAdapter]] = {}
    for name, of_tensor in adapters.items():
        owner, _, tensor = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, MixtureOfExperts):
            mixtures.setdefault(owner, {})[tensor] = of_tensor
        else:
            _replace_module(model, owner, LoraLinear(cast(nn.Linear, module), of_tensor))
    for owner, of_stacks in mixtures.items():
        mixture = cast(MixtureOfExperts, model.get_submodule(owner))
        _replace_module(model, owner, LoraExperts(mixture, of_stacks))


def detach(model: Transformer) -> None:
    """Removes all adapters from the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear | LoraExperts):
            _replace_module(model, name, module.without_adapters())


def _replace_module(model: Transformer, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def collect_adapter(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, LoraPart]:
    """Gives the model's adapter, with values taken from `weights` by parameter name."""
    adapter: dict[str, LoraPart] = {}
    for prefix, specs in _prefixes(model):
        tensors = (weights[f"{prefix}lora_A"], weights[f"{prefix}lora_B"])
        for spec, _, a_RI, b_OR in split_parts(specs, *tensors):
            adapter[spec.part.name] = LoraPart(a_RI, b_OR, spec.alpha)
    return adapter


def _prefixes(model: nn.Module) -> Iterator[tuple[str, tuple[PartSpec, ...]]]:
    """Yields the common prefix of the names of each lora_A and lora_B, and their specs."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.", module.specs
        elif isinstance(module, LoraExperts):
            for stack, specs in module.specs.items():
                yield f"{name}.{stack}_", specs


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Makes the model's forwards ignore the adapters inside the block."""
    beside = [part for part in model.modules() if isinstance(part, LoraLinear | LoraExperts)]
    for part in beside:
        part.is_active = False
    try:
        yield
    finally:
        for part in beside:
            part.is_active = True
