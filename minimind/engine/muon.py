"""Defines Muon: it updates matrices by orthogonal matrices, and all other weights as AdamW does.

DeepSpeed's own Muon is not used. It clips the orthogonal updates instead of the gradients, so that
the usual limit of 1 stops the matrices from learning; it forgets the rates of its parameter groups;
and at stage 2 it keeps the momentum in 16 bits. This Muon is an ordinary optimizer of PyTorch,
which DeepSpeed's ZeRO steps like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimind.config.deepspeed_optimizers import is_muon
from minimind.config.recipe import Recipe
from minimind.engine.parameter_groups import parameter_groups, trained_matrices
from minimind.engine.state_layout import Layout, Part

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The polynomial aX + bX³ + cX⁵ that brings singular values of 0 to 1 close to 1."""
_ITERATIONS = 5
_RMS = 0.2
"""The root mean square to which a matrix's update is scaled. AdamW's updates have about the same,
so both kinds of weights learn at one learning rate (Liu et al., "Muon is Scalable for LLM
Training", 2025)."""


def orthogonalized(x: Tensor) -> Tensor:
    """Gives roughly the nearest orthogonal matrix of each matrix in x [n, rows, columns]: its
    singular values become 0.7 to 1.2 by five Newton-Schulz iterations in x's dtype (Jordan et al.,
    "Muon", 2024)."""
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def initialize_arguments(
    module: nn.Module, recipe: Recipe, config: Mapping[str, Any], precision: str
) -> dict[str, Any]:
    """Gives the arguments of `deepspeed.initialize`: the resolved JSON and the trained parameters
    of `module`. For Muon they are an optimizer that holds the parameters, and the JSON without its
    optimizer: if the JSON named Muon, DeepSpeed would make the gradients orthogonal itself."""
    groups = parameter_groups(module, recipe)
    if not is_muon(recipe.optimizer):
        return {"config": config, "model_parameters": groups}
    rest = {key: value for key, value in config.items() if key != "optimizer"}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    params, rows = config["optimizer"]["params"], trained_matrices(module)
    return {"config": rest, "optimizer": Muon(groups, rows, dtype=dtype, fused=True, **params)}


class Muon(torch.optim.AdamW):
    """Updates the groups whose `is_matrix` is true by

        m = μ·m + (1 − μ)·g,   u = orthogonal((1 − μ)·g + μ·m)
        w = w − lr·(weight_decay·w + 0.2·√max(rows, columns)·u)

    and all others as AdamW. m is fp32; it is kept as `exp_avg` beside a counter `step`, AdamW's
    names, which conversions of checkpoints know. A weight that fuses several matrices (q, k and v;
    gate and up; an expert each) is updated matrix by matrix.

    The iterations compute in `dtype`; with fp32, several ranks take the same steps as one.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        rows: Mapping[Tensor, Sequence[int]],
        *,
        dtype: torch.dtype,
        momentum: float = 0.95,
        **adamw: Any,
    ) -> None:
        """`rows` gives, for each matrix parameter, the number of rows of each matrix fused in it;
        `adamw` are AdamW's options."""
        super().__init__([dict(group) for group in groups], **adamw)
        self._rows, self._momentum, self._dtype = dict(rows), momentum, dtype
        self._parts: dict[Tensor, list[Part]] = {}
        self._is_spread = False

    def place(self, layout: Layout, *, is_spread: bool = False) -> None:
        """Says which parts of parameters are in each stepped tensor, and whether the stepped
        tensors of all ranks make up the parameters. Without it no step can be taken."""
        self._parts, self._is_spread = dict(layout), is_spread

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["is_matrix"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group["is_matrix"] else ():
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])

    def _update(self, weight: Tensor, grad: Tensor, rate: Any, decay: float) -> None:
        """Updates one stepped tensor. All ranks call it for their pieces of one tensor."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
        mean = state["exp_avg"]
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            state["step"] += 1
        else:  # then the step changes nothing, as PyTorch's fused AdamW does
            grad = torch.where(found_inf.bool(), mean, grad)
            state["step"] += 1 - found_inf
            rate = rate * (1 - found_inf)
        mean.lerp_(grad, 1 - self._momentum)
        whole = self._gather(grad.lerp(mean, self._momentum).to(self._dtype).view(-1))
        parts = self._parts[weight]
        stacks = [_stacks(part.whole(whole), part, self._rows) for part in parts]
        # On a GPU few large products. On a CPU each matrix alone: so a step has the same bits
        # however ZeRO spreads the weights.
        update_all = by_shape if weight.is_cuda else one_by_one
        made = iter(update_all([stack for of_part in stacks for stack in of_part]))
        weight.mul_(1 - rate * decay)
        flat = weight.view(-1)
        for part, of_part in zip(parts, stacks, strict=True):
            joined = torch.cat([next(made) for _ in of_part], dim=1)
            piece = part.taken(joined.flatten())
            flat[part.start : part.start + piece.numel()].sub_(piece * rate)

    def _gather(self, piece: Tensor) -> Tensor:
        """Gives the pieces of all ranks, [ranks, size]."""
        ranks = dist.get_world_size() if self._is_spread else 1
        if ranks == 1:
            return piece.unsqueeze(0)
        # As bytes: not every backend gathers 16-bit numbers.
        gathered = torch.empty(ranks, piece.numel(), dtype=piece.dtype, device=piece.device)
        dist.all_gather(list(gathered.view(torch.uint8)), piece.view(torch.uint8))
        return gathered


def _stacks(whole: Tensor, part: Part, rows: Mapping[Tensor, Sequence[int]]) -> list[Tensor]:
    """Gives the matrices that a flat parameter fuses, [experts or 1, rows, columns] each. They are
    copies: the bits of a product may depend on where its matrices begin in memory."""
    *_, height, width = part.shape
    cut = whole.view(-1, height, width).split(list(rows[part.parameter]), dim=1)
    return [stack.clone(memory_format=torch.contiguous_format) for stack in cut]


def one_by_one(stacks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the updates of stacks of matrices [n, rows, columns]: orthogonal and scaled, fp32."""
    for stack in stacks:
        yield orthogonalized(stack).float() * (_RMS * math.sqrt(max(stack.shape[1:])))


def by_shape(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Yields the same as `one_by_one`, but computes all matrices of one shape at once."""
    places: dict[torch.Size, list[int]] = {}
    for place, stack in enumerate(stacks):
        places.setdefault(stack.shape[1:], []).append(place)
    made: dict[int, Tensor] = {}
    for of_shape in places.values():
        sizes = [len(stacks[place]) for place in of_shape]
        (update,) = one_by_one([torch.cat([stacks[place] for place in of_shape])])
        made |= dict(zip(of_shape, update.split(sizes), strict=True))
    return [made[place] for place in range(len(stacks))]
