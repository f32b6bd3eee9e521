"""Adds adapters to the stacked matrices of a mixture of experts. Shapes: see lora/adapter.py."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import minimind_kernels as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.lora.linear import FusedAdapter, PartSpec, lora_product, split_parts
from minimind.model.moe import MixtureOfExperts
from minimind.runtime.devices import send


class LoraExperts(MixtureOfExperts):
    """Computes a mixture of experts whose experts have adapters.

    It takes over the mixture's parameters under their own names. The adapters of a stack are
    `{stack}_lora_A` and `{stack}_lora_B`, laid out like LoraLinear's, one expert after the other.

    The fused kernels of `expert_ffn` cannot add a second product. So the experts run one by one,
    which must read the number of each one's tokens from the device; or, where PyTorch's grouped
    product allows it, all together without reading anything.
    """

    def __init__(self, mixture: MixtureOfExperts, adapters: Mapping[str, FusedAdapter]) -> None:
        with torch.device("meta"):
            super().__init__(mixture.config)
        _take_over(self, mixture)
        self.specs = {stack: of_stack.specs for stack, of_stack in adapters.items()}
        self.is_active = True
        """True where forwards use the adapters (see adapters_off in lora/model.py)."""
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
        # Each token is repeated per slot and then sorted, so that its gradient is a sum in a fixed
        # order.
        x_PD = x_MD.repeat_interleave(num_slots, dim=0).index_select(0, order_P)
        if all(self._is_grouped(x_PD, stack) for stack in ("gate_up_proj", "down_proj")):
            product = self._group(routing)
        else:
            bounds = list(itertools.pairwise(routing.offsets_E1.tolist()))
            product = functools.partial(self._product, bounds=bounds)
        hidden_PF = K.swiglu(product(x_PD, "gate_up_proj"))
        y_PD = product(hidden_PF, "down_proj")
        places_P = torch.empty_like(order_P)
        places_P[order_P] = torch.arange(len(order_P), device=order_P.device)
        y_MSD = y_PD.index_select(0, places_P).view(-1, num_slots, y_PD.shape[1])
        return (y_MSD * routing.weights_MS.unsqueeze(2)).sum(dim=1).to(x_MD.dtype)

    def _is_grouped(self, x_PD: Tensor, stack: str) -> bool:
        """Tells whether PyTorch's grouped product can compute a stack: the product must be
        supported, and its adapters must read whole rows of x."""
        weight_EOI = cast(Tensor, getattr(self, stack))
        adapter = getattr(self, f"{stack}_lora_A", None)
        is_whole = adapter is None or adapter.shape[1] == weight_EOI.shape[2]
        return is_whole and can_group(x_PD, weight_EOI)

    def _group(self, routing: K.Routing) -> Callable[[Tensor, str], Tensor]:
        """Gives a function that multiplies each expert's rows of x with its matrix of a stack, all
        experts in one product. An adapter is multiplied with all rows, and the results for other
        experts' rows are set to zero."""
        ends_E = routing.offsets_E1[1:].int()
        places_P = torch.arange(len(routing.order_P), device=ends_E.device)
        expert_P = torch.searchsorted(ends_E, places_P, right=True)

        def product(x_PI: Tensor, stack: str) -> Tensor:
            weight_EOI = cast(Tensor, getattr(self, stack))
            y_PO = cast(Tensor, _GroupedProduct.apply(x_PI, weight_EOI, ends_E))
            specs = self.specs.get(stack, ())
            if not specs:
                return y_PO
            num_rows = weight_EOI.shape[1]
            of_rank = [
                (s.part.rows.start // num_rows, s.scale) for s in specs for _ in range(s.rank)
            ]
            expert_R = send([expert for expert, _ in of_rank], x_PI.device)
            scale_R = send([scale for _, scale in of_rank], x_PI.device, x_PI.dtype)
            all_a, all_b = (cast(Tensor, getattr(self, f"{stack}_lora_{x}")) for x in "AB")
            counts_PR = torch.where(expert_P[:, None] == expert_R, scale_R, 0)
            z_PR = F.linear(x_PI, all_a) * counts_PR
            return _add_adapters(y_PO, z_PR, all_a, all_b, specs, num_rows)

        return product

    def _product(self, x_PI: Tensor, stack: str, bounds: list[tuple[int, int]]) -> Tensor:
        """Multiplies each expert's rows of x with its matrix of `stack`, adapters included: [P, O].
        `bounds` holds each expert's rows as (start, stop)."""
        weight_EOI = cast(Tensor, getattr(self, stack))
        parts = [x_PI[start:stop] for start, stop in bounds]
        if stack not in self.specs:
            products = zip(parts, weight_EOI, strict=True)
            return torch.cat([F.linear(part_PI, weight_OI) for part_PI, weight_OI in products])
        of_experts = _specs_of_experts(self.specs[stack], *weight_EOI.shape[:2])
        all_a, all_b = (getattr(self, f"{stack}_lora_{x}") for x in "AB")
        a_parts = all_a.split([sum(spec.rank for spec in specs) for specs in of_experts])
        b_parts = all_b.split([sum(spec.num_b for spec in specs) for specs in of_experts])
        return torch.cat([
            lora_product(parts[e], weight_EOI, a_parts[e], b_parts[e], specs, e)
            if specs
            else F.linear(parts[e], weight_EOI[e])
            for e, specs in enumerate(of_experts)
        ])  # fmt: skip


def can_group(x_PI: Tensor, weight_EOI: Tensor) -> bool:
    """Tells whether PyTorch's grouped product takes these tensors without waiting for the device:
    bf16 on a GPU from sm_80 on, with rows of whole 16 bytes."""
    return (
        x_PI.is_cuda
        and x_PI.dtype == torch.bfloat16
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x_PI.device) >= (8, 0)
        and not any(size % 8 for size in weight_EOI.shape[1:])
    )


class _GroupedProduct(torch.autograd.Function):
    """Multiplies each expert's rows of x, which end at its entry of ends_E, with its frozen matrix:
    [P, O]."""

    @staticmethod
    def forward(ctx: Any, x_PI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(weight_EOI, ends_E)
        return F.grouped_mm(x_PI, weight_EOI.transpose(1, 2), offs=ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight_EOI, ends_E = ctx.saved_tensors
        return F.grouped_mm(grads[0].contiguous(), weight_EOI, offs=ends_E), None, None


def _add_adapters(
    y_PO: Tensor,
    z_PR: Tensor,
    all_a: Tensor,
    all_b: Tensor,
    specs: tuple[PartSpec, ...],
    num_rows: int,
) -> Tensor:
    """Adds z·Bᵀ to y, for each spec in the columns that its part has in the expert's output."""
    pieces: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for spec, ranks, _, b_OR in split_parts(specs, all_a, all_b):
        first = spec.part.rows.start % num_rows
        columns = first, first + spec.part.num_rows
        pieces.setdefault(columns, []).append((z_PR[:, ranks], b_OR))
    for (first, stop), found in pieces.items():
        z, b = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        y_PO = y_PO + F.pad(F.linear(z, b), (first, y_PO.shape[1] - stop))
    return y_PO


def _take_over(mixture: MixtureOfExperts, other: MixtureOfExperts) -> None:
    mixture.gate, mixture.shared_experts = other.gate, other.shared_experts
    mixture.gate_up_proj, mixture.down_proj = other.gate_up_proj, other.down_proj


def _specs_of_experts(
    specs: tuple[PartSpec, ...], num_experts: int, num_rows: int
) -> list[list[PartSpec]]:
    """Groups the specs by expert, with rows counted inside the expert's own matrix of `num_rows`
    rows."""
    found: list[list[PartSpec]] = [[] for _ in range(num_experts)]
    for spec in specs:
        expert, start = divmod(spec.part.rows.start, num_rows)
        part = replace(spec.part, rows=slice(start, start + spec.part.num_rows))
        found[expert].append(replace(spec, part=part))
    return found
