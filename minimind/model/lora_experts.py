"""A mixture of experts with adapters beside its stacks. Shapes: see model/adapter.py."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import minimind_kernels as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.model.lora_linear import Adapters, Slot, lora_product
from minimind.model.moe import MixtureOfExperts


class LoraExperts(MixtureOfExperts):
    """Each expert's products with the adapters of that expert.

    Takes over the mixture's own parameters under their own names. The adapters of a stack are
    `{stack}_lora_A` and `{stack}_lora_B`, laid out as LoraLinear's, an expert after the other. The
    experts run one by one, and the counts of their tokens are read from the device for it: the
    fused kernels of `expert_ffn` have no room for a second product.
    """

    def __init__(self, mixture: MixtureOfExperts, adapters: Mapping[str, Adapters]) -> None:
        with torch.device("meta"):
            super().__init__(mixture.config)
        _take_over(self, mixture)
        self.slots = {stack: of_stack.slots for stack, of_stack in adapters.items()}
        self.is_active = True
        """Whether a forward uses the adapters (model/lora.py, adapters_off)."""
        for stack, of_stack in adapters.items():
            self.register_parameter(f"{stack}_lora_A", nn.Parameter(of_stack.a_RI))
            self.register_parameter(f"{stack}_lora_B", nn.Parameter(of_stack.b_flat))

    def without_adapters(self) -> MixtureOfExperts:
        with torch.device("meta"):
            mixture = MixtureOfExperts(self.config)
        _take_over(mixture, self)
        return mixture

    def run_experts(self, x_MD: Tensor, routing: K.Routing) -> Tensor:
        if not self.is_active:
            return super().run_experts(x_MD, routing)
        num_slots = routing.weights_MS.shape[1]
        order_P = routing.order_P.long()
        bounds = list(itertools.pairwise(routing.offsets_E1.tolist()))
        # Each token once per slot and then in order: its gradient is a sum in a fixed order.
        x_PD = x_MD.repeat_interleave(num_slots, dim=0).index_select(0, order_P)
        hidden_PF = K.swiglu(self._product(x_PD, "gate_up_proj", bounds))
        y_PD = self._product(hidden_PF, "down_proj", bounds)
        places_P = torch.empty_like(order_P)
        places_P[order_P] = torch.arange(len(order_P), device=order_P.device)
        y_MSD = y_PD.index_select(0, places_P).view(-1, num_slots, y_PD.shape[1])
        return (y_MSD * routing.weights_MS.unsqueeze(2)).sum(dim=1).to(x_MD.dtype)

    def _product(self, x_PI: Tensor, stack: str, bounds: list[tuple[int, int]]) -> Tensor:
        """Each expert's rows of x through its matrix of `stack`: [P, O]."""
        weight_EOI = cast(Tensor, getattr(self, stack))
        of_experts = _slots_of_experts(self.slots.get(stack, ()), weight_EOI.shape[1])
        if stack in self.slots:
            all_a, all_b = (getattr(self, f"{stack}_lora_{x}") for x in "AB")
        else:
            all_a, all_b = x_PI.new_empty(0, x_PI.shape[1]), x_PI.new_empty(0)
        counts = [of_experts.get(e, ()) for e in range(len(weight_EOI))]
        a_parts = all_a.split([sum(slot.rank for slot in slots) for slots in counts])
        b_parts = all_b.split([sum(slot.num_b for slot in slots) for slots in counts])
        outputs = []
        for expert, (start, stop) in enumerate(bounds):
            rows_PI, slots = x_PI[start:stop], counts[expert]
            if slots:
                adapters = (a_parts[expert], b_parts[expert], slots)
                outputs.append(lora_product(rows_PI, weight_EOI, *adapters, expert))
            else:
                outputs.append(F.linear(rows_PI, weight_EOI[expert]))
        return torch.cat(outputs)


def _take_over(mixture: MixtureOfExperts, other: MixtureOfExperts) -> None:
    mixture.gate, mixture.shared_experts = other.gate, other.shared_experts
    mixture.gate_up_proj, mixture.down_proj = other.gate_up_proj, other.down_proj


def _slots_of_experts(slots: tuple[Slot, ...], num_rows: int) -> dict[int, tuple[Slot, ...]]:
    """By expert, with rows counted within its own matrix of `num_rows`."""
    found: dict[int, tuple[Slot, ...]] = {}
    for slot in slots:
        expert, start = divmod(slot.part.rows.start, num_rows)
        part = replace(slot.part, rows=slice(start, start + slot.part.num_rows))
        found[expert] = (*found.get(expert, ()), replace(slot, part=part))
    return found
