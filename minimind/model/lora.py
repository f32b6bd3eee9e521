"""Linears with a low-rank adapter beside their frozen weight. Shapes: see model/adapter.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.model.adapter import LoraPart
from minimind.model.state_dict import LinearPart, linear_parts
from minimind.model.transformer import Transformer
from minimind.runtime.seeds import derive_seed

INIT_STD = 0.02
"""Of A; B starts at zero, so that a fresh adapter changes nothing."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one part's adapter, its rank and its alpha."""

    part: LinearPart
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """x·Wᵀ, and in each slot's output columns + scale·(x·Aᵀ)·Bᵀ with the slot's A and B.

    Takes over the linear's own weight under its own name, so the base model's state has the same
    keys with and without adapters. The slots' A stand above each other in `lora_A` [ΣR, I] and x
    meets them in one product; `lora_B` holds the slots' B [O, R] one after the other, laid flat,
    because their shapes differ. Both are parameters of this module and of no child, so ZeRO-3
    gathers them when it is called.
    """

    def __init__(
        self, linear: nn.Linear, slots: Sequence[Slot], a_RI: Tensor, b_flat: Tensor
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.slots = tuple(slots)
        self.lora_A = nn.Parameter(a_RI)
        self.lora_B = nn.Parameter(b_flat)

    def forward(self, input: Tensor) -> Tensor:
        arguments = (input, self.weight, self.lora_A, self.lora_B, self.slots)
        if torch.is_grad_enabled():
            return cast(Tensor, _LoraProduct.apply(*arguments))
        return _product(*arguments)[0]


def split_slots(
    slots: Sequence[Slot], a_RI: Tensor, b_flat: Tensor
) -> Iterator[tuple[Slot, Tensor, Tensor]]:
    """Each slot with views of its A [R, I] and B [O, R]."""
    all_a = a_RI.split([slot.rank for slot in slots])
    all_b = b_flat.split([slot.part.num_rows * slot.rank for slot in slots])
    for slot, a, b in zip(slots, all_a, all_b, strict=True):
        yield slot, a, b.view(slot.part.num_rows, slot.rank)


def _product(
    x_MI: Tensor, weight_OI: Tensor, a_RI: Tensor, b_flat: Tensor, slots: Sequence[Slot]
) -> tuple[Tensor, Tensor]:
    """The output [M, O] and x·Aᵀ [M, ΣR]."""
    y_MO, z_MR = F.linear(x_MI, weight_OI), F.linear(x_MI, a_RI)
    start = 0
    for slot, _, b_OR in split_slots(slots, a_RI, b_flat):
        columns = slice(start, start + slot.rank)
        y_MO[:, slot.part.rows].addmm_(z_MR[:, columns], b_OR.T, alpha=slot.scale)
        start = columns.stop
    return y_MO, z_MR


class _LoraProduct(torch.autograd.Function):
    """Written out so that the sum happens in the output's own memory and the frozen weight costs
    no product: dx = dy·W + dz·A, with dz = scale·dy·B per slot."""

    @staticmethod
    def forward(ctx: Any, x_MI, weight_OI, a_RI, b_flat, slots):
        y_MO, z_MR = _product(x_MI, weight_OI, a_RI, b_flat, slots)
        ctx.save_for_backward(x_MI, z_MR, weight_OI, a_RI, b_flat)
        ctx.slots = slots
        return y_MO

    @staticmethod
    def backward(ctx: Any, grad_MO):
        x_MI, z_MR, weight_OI, a_RI, b_flat = ctx.saved_tensors
        grad_z_MR, grads_b = torch.empty_like(z_MR), []
        start = 0
        for slot, _, b_OR in split_slots(ctx.slots, a_RI, b_flat):
            columns, part_MO = slice(start, start + slot.rank), grad_MO[:, slot.part.rows]
            grad_z_MR[:, columns] = (part_MO @ b_OR).mul_(slot.scale)
            grads_b.append((part_MO.T @ z_MR[:, columns]).mul_(slot.scale).flatten())
            start = columns.stop
        grad_x_MI = None
        if ctx.needs_input_grad[0]:
            grad_x_MI = (grad_MO @ weight_OI).addmm_(grad_z_MR, a_RI)
        grad_weight_OI = grad_MO.T @ x_MI if ctx.needs_input_grad[1] else None
        return grad_x_MI, grad_weight_OI, grad_z_MR.T @ x_MI, torch.cat(grads_b), None


def replace_linear(model: Transformer, name: str, linear: nn.Linear) -> None:
    """Puts `linear` where the module `name` of the model is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, linear)


def add_adapters(
    model: Transformer, ranks: Mapping[str, int], alphas: Mapping[str, float], seed: int
) -> None:
    """Freezes the model and puts fresh adapters beside its linears, in fp32.

    `ranks` (above 0) and `alphas` go by Hugging Face's names. A ~ N(0, 0.02), the same on every
    device and whatever other adapters there are; B = 0.
    """
    model.requires_grad_(False)
    for name, parts in linear_parts(model.config).items():
        slots = [Slot(p, ranks[p.name], alphas[p.name]) for p in parts if p.name in ranks]
        if not slots:
            continue
        linear = cast(nn.Linear, model.get_submodule(name))
        a_RI = torch.cat([_init_a(slot, seed) for slot in slots])
        b_flat = torch.zeros(sum(slot.part.num_rows * slot.rank for slot in slots))
        device = linear.weight.device
        adapted = LoraLinear(linear, slots, a_RI.to(device), b_flat.to(device))
        replace_linear(model, name, adapted)


def _init_a(slot: Slot, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, slot.part.name))
    a_RI = torch.empty(slot.rank, slot.part.num_columns)
    return a_RI.normal_(0.0, INIT_STD, generator=generator)


def collect_adapter(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, LoraPart]:
    """The model's adapter, with its numbers taken from `weights` by parameter name."""
    adapter: dict[str, LoraPart] = {}
    for name, linear in model.named_modules():
        if isinstance(linear, LoraLinear):
            tensors = (weights[f"{name}.lora_A"], weights[f"{name}.lora_B"])
            for slot, a_RI, b_OR in split_slots(linear.slots, *tensors):
                adapter[slot.part.name] = LoraPart(a_RI, b_OR, slot.alpha)
    return adapter
