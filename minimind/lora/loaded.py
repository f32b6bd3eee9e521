"""Keeps several adapters over one model in memory, and activates any combination of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimind.errors import CheckpointError, ConfigError
from minimind.lora.adapter import EMBEDDING, HEAD, Adapter, check_fits
from minimind.lora.folder import find_base, load_adapter
from minimind.lora.linear import FusedAdapter, PartSpec
from minimind.lora.model import attach, detach
from minimind.model.state_dict import LinearPart, linear_parts
from minimind.model.transformer import Transformer


class LoadedAdapters:
    """Holds adapters by name over `model`, whose own weights they never change.

    The active adapters are joined to one: their ranks lie side by side, with their scales
    multiplied into B. So two active adapters need no more products than one.
    """

    def __init__(self, model: Transformer, base_fingerprint: str | None = None) -> None:
        """`base_fingerprint` is the fingerprint (lora.folder.fingerprint) of the folder that the
        model was loaded from. If it is given, an adapter trained on other weights is refused."""
        self._model = model
        self._base_fingerprint = base_fingerprint
        self._adapters: dict[str, Adapter] = {}
        self.active: dict[str, float] = {}
        """The scale of each active adapter, by name."""
        self.num_switches = 0
        """How often the active adapters, and with them the model's modules, have changed."""

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def load(self, name: str, folder: Path) -> None:
        """Loads an adapter folder under `name`. Raises CheckpointError where it is for another
        model."""
        if self._base_fingerprint and find_base(folder).fingerprint != self._base_fingerprint:
            raise CheckpointError(f"{folder}: trained beside other weights than this model's")
        self.add(name, load_adapter(folder, self._model.config), str(folder))

    def add(self, name: str, adapter: Adapter, origin: str = "the adapter") -> None:
        """Adds an adapter under a name that is not in use. Raises CheckpointError where it does not
        fit the model, ConfigError where the name is taken."""
        if name in self._adapters:
            raise ConfigError(f"an adapter named {name!r} is loaded already: remove it first")
        check_fits(self._model.config, adapter, origin)
        if merged_only := {EMBEDDING, HEAD} & set(adapter):
            raise CheckpointError(
                f"{origin}: the adapter of {sorted(merged_only)[0]} acts only merged into its "
                "model: give the adapter's folder as the checkpoint"
            )
        self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Removes an adapter and frees its memory; the other active ones stay active."""
        self._find(name)
        self.activate({n: scale for n, scale in self.active.items() if n != name})
        del self._adapters[name]

    def activate(self, scales: Mapping[str, float]) -> None:
        """Activates exactly these adapters, each multiplied by its scale; {} leaves the bare model.
        Raises ConfigError for a name that is not loaded."""
        chosen = [(self._find(name), scale) for name, scale in scales.items()]
        detach(self._model)
        adapters: dict[str, FusedAdapter] = {}
        for name, parts in linear_parts(self._model.config).items():
            weight = self._model.get_parameter(name)
            if of_tensor := _combine(parts, chosen, weight):
                adapters[name] = of_tensor
        attach(self._model, adapters)
        for name, parameter in self._model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(False)
        self.active = dict(scales)
        self.num_switches += 1

    def switch_to(self, name: str | None) -> None:
        """Activates this adapter alone at scale 1, or for None the bare model. Does nothing if that
        is active already."""
        wanted = {} if name is None else {name: 1.0}
        if self.active != wanted:
            self.activate(wanted)

    def _find(self, name: str) -> Adapter:
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise ConfigError(f"no adapter named {name!r} is loaded; loaded: {loaded}")
        return self._adapters[name]


def _combine(
    parts: list[LinearPart], chosen: list[tuple[Adapter, float]], weight: Tensor
) -> FusedAdapter | None:
    """Joins the chosen adapters of one tensor to one of the summed rank, with every scale in its B.
    Gives None where no chosen adapter changes this tensor."""
    specs, all_a, all_b = [], [], []
    for part in parts:
        found = [(a[part.name], scale) for a, scale in chosen if part.name in a]
        if not found:
            continue
        a_RI = torch.cat([adapter.a_RI for adapter, _ in found])
        scaled = [p.b_OR.float() * (p.alpha / p.rank * scale) for p, scale in found]
        specs.append(PartSpec(part, rank=len(a_RI), alpha=len(a_RI)))
        all_a.append(a_RI)
        all_b.append(torch.cat(scaled, dim=1).flatten())
    if not specs:
        return None
    a_RI, b_flat = (torch.cat(x).to(weight.device, weight.dtype) for x in (all_a, all_b))
    return FusedAdapter(tuple(specs), a_RI, b_flat)
