"""Linears with a low-rank adapter beside their frozen weight. Shapes: see lora/adapter.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import minimind_kernels as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.model.feed_forward import SwiGLULinear
from minimind.model.state_dict import LinearPart


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one part's adapter, its rank and its alpha."""

    part: LinearPart
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def num_b(self) -> int:
        return self.part.num_rows * self.rank


@dataclass(frozen=True, slots=True)
class Adapters:
    """Those of all parts of one tensor. The slots' A stand above each other in `a_RI` [ΣR, I];
    their B [O, R] follow each other in `b_flat`, because their shapes differ."""

    slots: tuple[Slot, ...]
    a_RI: Tensor
    b_flat: Tensor


class LoraLinear(nn.Linear):
    """x·Wᵀ, and in each slot's output columns + scale·(x·Aᵀ)·Bᵀ with the slot's A and B.

    Takes over the linear's own weight under its own name, so the base model's state has the same
    keys with and without adapters. `lora_A` and `lora_B` are parameters of this module and of no
    child, so ZeRO-3 gathers them when it is called.
    """

    def __init__(self, linear: nn.Linear, adapters: Adapters) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        # In a tuple: as a child it would have the weight a second time.
        self._bare = (linear,)
        self.takes_gate_up = isinstance(linear, SwiGLULinear)
        self.slots = adapters.slots
        self.is_active = True
        """Whether a forward uses the adapters (lora/model.py, adapters_off)."""
        self.lora_A = nn.Parameter(adapters.a_RI)
        self.lora_B = nn.Parameter(adapters.b_flat)

    def reset_parameters(self) -> None:
        """Nothing: both matrices come from outside, and random numbers take longer than all else
        where adapters change from step to step."""

    def without_adapters(self) -> nn.Linear:
        (linear,) = self._bare
        linear.weight = self.weight
        return linear

    def forward(self, input: Tensor) -> Tensor:
        if self.takes_gate_up:
            input = K.swiglu(input)
        if not self.is_active:
            return F.linear(input, self.weight)
        return lora_product(input, self.weight, self.lora_A, self.lora_B, self.slots)


def lora_product(
    x_MI: Tensor,
    weight: Tensor,
    a_RI: Tensor,
    b_flat: Tensor,
    slots: Sequence[Slot],
    expert: int | None = None,
) -> Tensor:
    """x·Wᵀ with the slots' adapters: [M, O]. `weight` is [O, I], or a frozen stack [E, O, I] of
    which `expert` is meant. All of one dtype, in which each product is rounded."""
    arguments = (x_MI, weight, a_RI, b_flat, slots, expert)
    if torch.is_grad_enabled():
        return cast(Tensor, _LoraProduct.apply(*arguments))
    return _product(*arguments)[0]


def split_slots(
    slots: Sequence[Slot], a_RI: Tensor, b_flat: Tensor
) -> Iterator[tuple[Slot, Tensor, Tensor]]:
    """Each slot with views of its A [R, I] and B [O, R]."""
    all_a = a_RI.split([slot.rank for slot in slots])
    all_b = b_flat.split([slot.num_b for slot in slots])
    for slot, a, b in zip(slots, all_a, all_b, strict=True):
        yield slot, a, b.view(slot.part.num_rows, slot.rank)


def _product(
    x_MI: Tensor,
    weight: Tensor,
    a_RI: Tensor,
    b_flat: Tensor,
    slots: Sequence[Slot],
    expert: int | None,
) -> tuple[Tensor, Tensor]:
    """The output [M, O] and x·Aᵀ [M, ΣR]."""
    y_MO = F.linear(x_MI, weight if expert is None else weight[expert])
    if a_RI.shape[1] == x_MI.shape[1]:
        z_MR = F.linear(x_MI, a_RI)
    else:
        parts = split_slots(slots, a_RI, b_flat)
        z_MR = torch.cat([F.linear(x_MI[:, slot.part.columns], a) for slot, a, _ in parts], dim=1)
    start = 0
    for slot, _, b_OR in split_slots(slots, a_RI, b_flat):
        ranks = slice(start, start + slot.rank)
        y_MO[:, slot.part.rows].addmm_(z_MR[:, ranks], b_OR.T, alpha=slot.scale)
        start = ranks.stop
    return y_MO, z_MR


class _LoraProduct(torch.autograd.Function):
    """Written out so that the sum happens in the output's own memory and the frozen weight costs
    no product: dx = dy·W + dz·A, with dz = scale·dy·B per slot."""

    @staticmethod
    def forward(ctx: Any, x_MI, weight, a_RI, b_flat, slots, expert):
        y_MO, z_MR = _product(x_MI, weight, a_RI, b_flat, slots, expert)
        # The whole parameter, not a view of one expert: ZeRO-3 frees and gathers it in between.
        ctx.save_for_backward(x_MI, z_MR, weight, a_RI, b_flat)
        ctx.slots, ctx.expert = slots, expert
        return y_MO

    @staticmethod
    def backward(ctx: Any, grad_MO):
        x_MI, z_MR, weight, a_RI, b_flat = ctx.saved_tensors
        weight_OI = weight if ctx.expert is None else weight[ctx.expert]
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        assert not needs_weight or ctx.expert is None, "stacks of experts are frozen"
        grad_x_MI = grad_MO @ weight_OI if needs_x else None
        grad_z_MR, grads_b = torch.empty_like(z_MR), []
        start = 0
        for slot, _, b_OR in split_slots(ctx.slots, a_RI, b_flat):
            ranks, part_MO = slice(start, start + slot.rank), grad_MO[:, slot.part.rows]
            grad_z_MR[:, ranks] = (part_MO @ b_OR).mul_(slot.scale)
            grads_b.append((part_MO.T @ z_MR[:, ranks]).mul_(slot.scale).flatten())
            start = ranks.stop
        if a_RI.shape[1] == x_MI.shape[1]:
            grad_a_RI = grad_z_MR.T @ x_MI
            if grad_x_MI is not None:
                grad_x_MI.addmm_(grad_z_MR, a_RI)
        else:
            grads_a = []
            pieces = grad_z_MR.split([slot.rank for slot in ctx.slots], dim=1)
            parts = split_slots(ctx.slots, a_RI, b_flat)
            for (slot, a, _), grad_z in zip(parts, pieces, strict=True):
                grads_a.append(grad_z.T @ x_MI[:, slot.part.columns])
                if grad_x_MI is not None:
                    grad_x_MI[:, slot.part.columns].addmm_(grad_z, a)
            grad_a_RI = torch.cat(grads_a)
        grad_weight = grad_MO.T @ x_MI if needs_weight else None
        return grad_x_MI, grad_weight, grad_a_RI, torch.cat(grads_b), None, None
