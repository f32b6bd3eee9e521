"""Adds low-rank adapters to linears with frozen weights. Shapes: see lora/adapter.py."""

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
class PartSpec:
    """Says which part of a tensor an adapter is for, its rank and its alpha."""

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
class FusedAdapter:
    """Holds LoRA A and B of every part (q, k, v) of one tensor. The parts' A are stacked in `a_RI`
    [ΣR, I]; their B, each [O, R], are laid flat one after the other in `b_flat`, because their
    shapes differ."""

    specs: tuple[PartSpec, ...]
    a_RI: Tensor
    b_flat: Tensor


class LoraLinear(nn.Linear):
    """Computes x·Wᵀ, and adds scale·(x·Aᵀ)·Bᵀ to each part's output columns, with the part's A and
    B.

    It takes over the linear's weight under its own name, so that the base model's state has the
    same keys with and without adapters. `lora_A` and `lora_B` are parameters of this module and not
    of a child, so that ZeRO-3 gathers them when the module is called.
    """

    def __init__(self, linear: nn.Linear, adapters: FusedAdapter) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        # Kept in a tuple: as a child module it would register the weight a second time.
        self._bare = (linear,)
        self.takes_gate_up = isinstance(linear, SwiGLULinear)
        self.specs = adapters.specs
        self.is_active = True
        """True where forwards use the adapters (see adapters_off in lora/model.py)."""
        self.lora_A = nn.Parameter(adapters.a_RI)
        self.lora_B = nn.Parameter(adapters.b_flat)

    def reset_parameters(self) -> None:
        """Does nothing: both matrices come from outside, and drawing random numbers would take most
        of the time where adapters change from step to step."""

    def without_adapters(self) -> nn.Linear:
        (linear,) = self._bare
        linear.weight = self.weight
        return linear

    def forward(self, input: Tensor) -> Tensor:
        if self.takes_gate_up:
            input = K.swiglu(input)
        if not self.is_active:
            return F.linear(input, self.weight)
        return lora_product(input, self.weight, self.lora_A, self.lora_B, self.specs)


def lora_product(
    x_MI: Tensor,
    weight: Tensor,
    a_RI: Tensor,
    b_flat: Tensor,
    specs: Sequence[PartSpec],
    expert: int | None = None,
) -> Tensor:
    """Computes x·Wᵀ and adds the parts' adapters: [M, O]. `weight` is [O, I], or a frozen stack [E,
    O, I] from which `expert` selects one. All tensors have one dtype, to which each product is
    rounded."""
    arguments = (x_MI, weight, a_RI, b_flat, specs, expert)
    if torch.is_grad_enabled():
        return cast(Tensor, _LoraProduct.apply(*arguments))
    return _product(*arguments)[0]


def split_parts(
    specs: Sequence[PartSpec], a_RI: Tensor, b_flat: Tensor
) -> Iterator[tuple[PartSpec, slice, Tensor, Tensor]]:
    """Yields each part's spec, the slice of its ranks in the stacked A, and views of its A [R, I]
    and B [O, R]."""
    first = 0
    for spec, b in zip(specs, b_flat.split([spec.num_b for spec in specs]), strict=True):
        ranks = slice(first, first + spec.rank)
        yield spec, ranks, a_RI[ranks], b.view(spec.part.num_rows, spec.rank)
        first = ranks.stop


def _product(
    x_MI: Tensor,
    weight: Tensor,
    a_RI: Tensor,
    b_flat: Tensor,
    specs: Sequence[PartSpec],
    expert: int | None,
) -> tuple[Tensor, Tensor]:
    """Gives the output [M, O], and x·Aᵀ [M, ΣR]."""
    y_MO = F.linear(x_MI, weight if expert is None else weight[expert])
    if a_RI.shape[1] == x_MI.shape[1]:
        z_MR = F.linear(x_MI, a_RI)
    else:
        parts = split_parts(specs, a_RI, b_flat)
        z_MR = torch.cat([F.linear(x_MI[:, spec.part.columns], a) for spec, _, a, _ in parts], 1)
    for spec, ranks, _, b_OR in split_parts(specs, a_RI, b_flat):
        y_MO[:, spec.part.rows].addmm_(z_MR[:, ranks], b_OR.T, alpha=spec.scale)
    return y_MO, z_MR


class _LoraProduct(torch.autograd.Function):
    """Adds the adapters into the output's own memory, and computes no gradient of the frozen
    weight: dx = dy·W + dz·A, where dz = scale·dy·B for each part."""

    @staticmethod
    def forward(ctx: Any, x_MI, weight, a_RI, b_flat, specs, expert):
        y_MO, z_MR = _product(x_MI, weight, a_RI, b_flat, specs, expert)
        # Saves the whole parameter, not a view of one expert: ZeRO-3 frees and gathers it in
        # between.
        ctx.save_for_backward(x_MI, z_MR, weight, a_RI, b_flat)
        ctx.specs, ctx.expert = specs, expert
        return y_MO

    @staticmethod
    def backward(ctx: Any, grad_MO):
        x_MI, z_MR, weight, a_RI, b_flat = ctx.saved_tensors
        weight_OI = weight if ctx.expert is None else weight[ctx.expert]
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        assert not needs_weight or ctx.expert is None, "stacks of experts are frozen"
        grad_x_MI = grad_MO @ weight_OI if needs_x else None
        grad_z_MR, grads_b = torch.empty_like(z_MR), []
        for spec, ranks, _, b_OR in split_parts(ctx.specs, a_RI, b_flat):
            part_MO = grad_MO[:, spec.part.rows]
            grad_z_MR[:, ranks] = (part_MO @ b_OR).mul_(spec.scale)
            grads_b.append((part_MO.T @ z_MR[:, ranks]).mul_(spec.scale).flatten())
        if a_RI.shape[1] == x_MI.shape[1]:
            grad_a_RI = grad_z_MR.T @ x_MI
            if grad_x_MI is not None:
                grad_x_MI.addmm_(grad_z_MR, a_RI)
        else:
            grad_a_RI = torch.empty_like(a_RI)
            for spec, ranks, a, _ in split_parts(ctx.specs, a_RI, b_flat):
                grad_z, columns = grad_z_MR[:, ranks], spec.part.columns
                grad_a_RI[ranks] = grad_z.T @ x_MI[:, columns]
                if grad_x_MI is not None:
                    grad_x_MI[:, columns].addmm_(grad_z, a)
        grad_weight = grad_MO.T @ x_MI if needs_weight else None
        return grad_x_MI, grad_weight, grad_a_RI, torch.cat(grads_b), None, None
