"""Adapters over one model at run time: several in memory, any mixture of them active."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from minimind.errors import CheckpointError, ConfigError
from minimind.model.adapter import Adapter, check_fits
from minimind.model.adapter_folder import find_base, load_adapter
from minimind.model.lora import LoraLinear, Slot, replace_linear
from minimind.model.state_dict import LinearPart, linear_parts
from minimind.model.transformer import Transformer


class LoadedAdapters:
    """Adapters by name over `model`, whose own weights they never change until `merge`.

    What is active is one adapter to the forward: the ranks of all active ones laid beside each
    other, their scales in B. So two active adapters cost no more products than one.
    """

    def __init__(self, model: Transformer, base_fingerprint: str | None = None) -> None:
        """`base_fingerprint`: of the folder the model came from (adapter_folder.fingerprint); with
        it an adapter that was trained beside other weights is refused."""
        self._model = model
        self._base_fingerprint = base_fingerprint
        self._adapters: dict[str, Adapter] = {}
        self._replaced: dict[str, Tensor] = {}
        self.active: dict[str, float] = {}
        """Name to scale."""

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def load(self, name: str, folder: Path) -> None:
        """Reads an adapter folder. Raises CheckpointError where it is for another model."""
        if self._base_fingerprint and find_base(folder).fingerprint != self._base_fingerprint:
            raise CheckpointError(f"{folder}: trained beside other weights than this model's")
        self.add(name, load_adapter(folder), str(folder))

    def add(self, name: str, adapter: Adapter, origin: str = "the adapter") -> None:
        """Takes in an adapter under a name that is free. Raises CheckpointError where it does not
        fit the model, ConfigError where the name is taken."""
        if name in self._adapters:
            raise ConfigError(f"an adapter named {name!r} is loaded already: remove it first")
        check_fits(self._model.config, adapter, origin)
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Frees one; if it is active, the others that are stay so."""
        self._find(name)
        self.activate({n: scale for n, scale in self.active.items() if n != name})
        del self._adapters[name]

    def activate(self, scales: Mapping[str, float]) -> None:
        """Switches to exactly these, each times its scale; {} leaves the bare model. Raises
        ConfigError for a name that is not loaded."""
        chosen = [(self._find(name), scale) for name, scale in scales.items()]
        self._restore()
        for name, parts in linear_parts(self._model.config).items():
            linear = cast(nn.Linear, self._model.get_submodule(name))
            if isinstance(linear, LoraLinear):
                linear = _without_adapter(linear)
                replace_linear(self._model, name, linear)
            if adapted := _with_adapters(linear, parts, chosen):
                replace_linear(self._model, name, adapted)
        self.active = dict(scales)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds what is active into the weights, for speed: W + Σ scale · alpha/r · B·A, summed in
        fp32 and rounded once. Keeps the weights that it replaces."""
        if self._replaced:
            return
        for name, parts in linear_parts(self._model.config).items():
            linear = self._model.get_submodule(name)
            if not isinstance(linear, LoraLinear):
                continue
            base = linear.weight.data
            full = base.to(torch.float32, copy=True)
            for part in parts:
                for adapter, scale in ((self._adapters[n], s) for n, s in self.active.items()):
                    if part.name in adapter:
                        full[part.rows, part.columns] += (
                            adapter[part.name].delta().to(full.device) * scale
                        )
            self._replaced[name] = base
            linear.weight.data = full.to(base.dtype)
            replace_linear(self._model, name, _without_adapter(linear))

    def unmerge(self) -> None:
        """Puts the weights from before `merge` back, bitwise, and what is active beside them."""
        self.activate(self.active)

    def _restore(self) -> None:
        for name, base in self._replaced.items():
            cast(nn.Linear, self._model.get_submodule(name)).weight.data = base
        self._replaced = {}

    def _find(self, name: str) -> Adapter:
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise ConfigError(f"no adapter named {name!r} is loaded; loaded: {loaded}")
        return self._adapters[name]


def _without_adapter(linear: LoraLinear) -> nn.Linear:
    bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    bare.weight = linear.weight
    return bare


def _with_adapters(
    linear: nn.Linear, parts: list[LinearPart], chosen: list[tuple[Adapter, float]]
) -> LoraLinear | None:
    """One adapter of the sum of the ranks; None where no active adapter is for this linear."""
    slots, all_a, all_b = [], [], []
    for part in parts:
        found = [(a[part.name], scale) for a, scale in chosen if part.name in a]
        if not found:
            continue
        a_RI = torch.cat([adapter.a_RI for adapter, _ in found])
        b_OR = torch.cat([p.b_OR.float() * (p.alpha / p.rank * scale) for p, scale in found], dim=1)
        slots.append(Slot(part, rank=len(a_RI), alpha=len(a_RI)))
        all_a.append(a_RI)
        all_b.append(b_OR.flatten())
    if not slots:
        return None
    weight = linear.weight
    a_RI, b_flat = (torch.cat(x).to(weight.device, weight.dtype) for x in (all_a, all_b))
    adapted = LoraLinear(linear, slots, a_RI, b_flat)
    adapted.lora_A.requires_grad_(False)
    adapted.lora_B.requires_grad_(False)
    return adapted
