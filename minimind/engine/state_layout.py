"""Finds where DeepSpeed's optimizers keep each parameter: in which tensors, and from where on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.engine.parameter_groups import trained_parameters


@dataclass(frozen=True, slots=True)
class Part:
    """Describes the part of one parameter that lies in a tensor which the optimizer steps, on this
    rank."""

    parameter: Tensor
    start: int
    """The index in the stepped tensor at which the part begins."""
    taken: Callable[[Tensor], Tensor]
    """Takes the part from a flat tensor of the whole parameter."""
    whole: Callable[[Tensor], Tensor]
    """Takes the whole parameter, flat, from the stepped tensors of all ranks, [ranks, size]; from
    [1, size] where nothing is spread over ranks."""

    @property
    def shape(self) -> torch.Size:
        """Gives the parameter's shape, which ZeRO-3 keeps elsewhere."""
        return getattr(self.parameter, "ds_shape", self.parameter.shape)


Layout = Iterator[tuple[Tensor, list[Part]]]
"""Yields each stepped tensor of this rank with the parts in it, in the order of the parameters."""


def find_layout(optimizer: Any, zero_stage: int, module: nn.Module) -> Layout:
    """Finds the parts of the trained parameters of `module` in the tensors that DeepSpeed's
    `optimizer` steps."""
    parameters = [parameter for _, parameter in trained_parameters(module)]
    if zero_stage == 3:
        yield from _partitioned(optimizer, parameters)
    elif zero_stage:
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            masters, groups = optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups
        else:  # the optimizer of stage 1 for bf16 with gradients summed in fp32
            masters, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
        for flat, group in zip(masters, groups, strict=True):
            held = [parameter for parameter in group if parameter._hp_mapping is not None]
            yield flat, [_fragment(parameter, flat.numel()) for parameter in held]
    elif not hasattr(optimizer, "fp16_groups"):
        yield from whole_layout(parameters)
    else:
        for index, group in enumerate(optimizer.fp16_groups):
            if hasattr(optimizer, "fp32_groups"):
                pairs = zip(group, optimizer.fp32_groups[index], strict=True)
                yield from ((master, [_all(parameter)]) for parameter, master in pairs)
            else:
                starts = torch.tensor([0] + [p.numel() for p in group]).cumsum(0).tolist()
                parts = [_all(p, start) for p, start in zip(group, starts, strict=False)]
                yield optimizer.fp32_groups_flat[index], parts


def whole_layout(parameters: Iterable[Tensor]) -> Layout:
    """Gives the layout of an optimizer that steps the parameters themselves."""
    return ((parameter, [_all(parameter)]) for parameter in parameters)


def _all(parameter: Tensor, start: int = 0) -> Part:
    end = start + parameter.numel()
    return Part(parameter, start, lambda value: value, lambda tensors: tensors[0, start:end])


def _fragment(parameter: Any, size: int) -> Part:
    """Finds this rank's part of a parameter. The group's parameters lie end to end and are cut into
    pieces of `size` elements, one per rank."""
    inside = parameter._hp_mapping.lp_fragment_address
    place = parameter._hp_mapping.hp_fragment_address
    first = torch.distributed.get_rank() * size + place.start - inside.start
    return Part(
        parameter,
        place.start,
        lambda value: value[inside.start : inside.start + inside.numel],
        lambda tensors: tensors.flatten()[first : first + parameter.numel()],
    )


def _partitioned(optimizer: Any, parameters: Iterable[Tensor]) -> Layout:
    """Finds this rank's parts of parameters, each of which is cut into one piece per rank. The last
    ranks' pieces are padded with zeros."""
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts: dict[int, list[Part]] = {}
    for parameter in parameters:
        group, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        numel = int(parameter.ds_numel)  # type: ignore[attr-defined]

        def taken(value: Tensor, size: int = size) -> Tensor:
            return F.pad(value, (0, size * num_ranks - value.numel()))[rank * size :][:size]

        def whole(tensors: Tensor, start: int = start, size: int = size, n: int = numel) -> Tensor:
            return tensors[:, start : start + size].flatten()[:n]

        parts.setdefault(group, []).append(Part(parameter, start, taken, whole))
    for index, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        yield flat, parts.get(index, [])
