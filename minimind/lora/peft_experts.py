"""Reads and makes PEFT's adapters of stacked experts.

transformers 5 keeps all experts of a layer in two stacks, and PEFT (0.21, ParamWrapper) adapts a
stack as one: A is [E·R, I] with each expert's rows together, B is [O, R·E] with the experts
innermost. The adapters are named after the module that holds the stacks: `mlp.experts` for one of
them and `mlp.experts.base_layer` for the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.lora.adapter import LoraPart

_EXPERTS = re.compile(r"(.+\.mlp\.experts)(?:\.base_layer)*")
GATE_UP, DOWN = "gate_up_proj", "down_proj"


def find_stack(
    name: str, a_KI: Tensor, b_OK: Tensor, config: ModelConfig, origin: str
) -> str | None:
    """Gives the name of the stack that an adapter is for, such as
    `model.layers.0.mlp.experts.down_proj`, from the sizes of its A and B; None where `name` is not
    that of a layer's experts. Raises CheckpointError where the sizes are no stack's."""
    found = _EXPERTS.fullmatch(name)
    if not found:
        return None
    hidden, ffn = config.hidden_size, config.moe_intermediate_size
    stacks = {(2 * ffn, hidden): GATE_UP, (hidden, ffn): DOWN}
    shape = (len(b_OK), a_KI.shape[1])
    if config.num_experts == 0 or shape not in stacks or len(a_KI) % config.num_experts:
        raise CheckpointError(
            f"{origin}: the adapter of all experts, {name}, has A {list(a_KI.shape)} and B "
            f"{list(b_OK.shape)}, which fit no experts of this model"
        )
    return f"{found[1]}.{stacks[shape]}"


def split_experts(
    stack: str, a_KI: Tensor, b_OK: Tensor, config: ModelConfig, alpha: float
) -> dict[str, LoraPart]:
    """Gives the adapter of each expert's linears. Gate and up, which lie one above the other in
    their stack, have the same A."""
    experts, _, kind = stack.rpartition(".")
    count = config.num_experts
    a_ERI = a_KI.unflatten(0, (count, -1))
    b_EOR = b_OK.unflatten(1, (-1, count)).permute(2, 0, 1)
    linears = ("gate_proj", "up_proj") if kind == GATE_UP else (DOWN,)
    adapter = {}
    for e in range(count):
        for linear, b_OR in zip(linears, b_EOR[e].chunk(len(linears)), strict=True):
            adapter[f"{experts}.{e}.{linear}"] = LoraPart(a_ERI[e], b_OR.contiguous(), alpha)
    return adapter


def join_experts(parts: Sequence[Sequence[LoraPart]], rank: int, scale: float) -> LoraPart:
    """Joins the adapters of a stack to one, the inverse of `split_experts`. `parts` holds for each
    expert the adapters of its linears that lie one above the other: gate and up, or down alone."""
    joined = [join_linears(of_expert, rank, scale) for of_expert in parts]
    a_KI = torch.cat([part.a_RI for part in joined])
    b_OK = torch.stack([part.b_OR for part in joined], dim=2).flatten(1)
    return LoraPart(a_KI, b_OK, scale * rank)


def join_linears(parts: Sequence[LoraPart], rank: int, scale: float) -> LoraPart:
    """Joins the adapters of linears that lie one above the other to one of `rank` and alpha
    `scale * rank`. What their own scales are more than `scale` goes into B, and zeros fill up the
    rank."""
    b_parts = [part.b_OR.float() * (part.scale / scale) for part in parts]
    if has_one_a(parts):
        a_RI, b_OR = parts[0].a_RI.float(), torch.cat(b_parts)
    else:
        a_RI = torch.cat([part.a_RI.float() for part in parts])
        b_OR = torch.block_diag(*b_parts)
    missing = rank - len(a_RI)
    return LoraPart(F.pad(a_RI, (0, 0, 0, missing)), F.pad(b_OR, (0, missing)), scale * rank)


def joined_rank(parts: Sequence[LoraPart]) -> int:
    """Gives the rank that `join_linears` needs at least."""
    return parts[0].rank if has_one_a(parts) else sum(part.rank for part in parts)


def has_one_a(parts: Sequence[LoraPart]) -> bool:
    """Tells whether the adapters share one A, as they do when `split_experts` made them."""
    return all(torch.equal(parts[0].a_RI, part.a_RI) for part in parts[1:])
