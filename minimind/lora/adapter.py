"""Holds low-rank adapters as tensors: ΔW = alpha/r · B·A (Hu et al. 2021, arXiv:2106.09685).

R is an adapter's rank, I and O are a linear's inputs and outputs. An adapter belongs to a linear by
its Hugging Face name; each part of a fused matrix (q, k, v; gate, up) has an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.model.state_dict import linear_parts

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
"""The Hugging Face names of the matrices over the vocabulary. An adapter of one of them acts only
merged into its model."""


@dataclass(frozen=True, slots=True)
class LoraPart:
    """Holds the adapter of one linear."""

    a_RI: Tensor
    b_OR: Tensor
    alpha: float

    @classmethod
    def empty(cls, num_rows: int, num_columns: int) -> LoraPart:
        """Gives an adapter of rank 0, which changes nothing."""
        return cls(torch.zeros(0, num_columns), torch.zeros(num_rows, 0), 0.0)

    @property
    def rank(self) -> int:
        return len(self.a_RI)

    @property
    def scale(self) -> float:
        """Gives alpha/r; 0 for a rank of 0, which changes nothing."""
        return self.alpha / self.rank if self.rank else 0.0

    def delta(self) -> Tensor:
        """Gives the change of the weight, alpha/r · B·A: fp32 [O, I]."""
        return (self.b_OR.float() @ self.a_RI.float()).mul_(self.scale)


Adapter = Mapping[str, LoraPart]
"""The adapter of each linear, by its Hugging Face name, such as
`model.layers.0.self_attn.q_proj`."""


def check_fits(config: ModelConfig, adapter: Adapter, origin: str) -> None:
    """Raises CheckpointError unless each part's linear exists in this model and has the part's
    shape."""
    shapes = {
        part.name: (part.num_rows, part.num_columns)
        for parts in linear_parts(config).values()
        for part in parts
    }
    shapes |= dict.fromkeys((EMBEDDING, HEAD), (config.vocab_size, config.hidden_size))
    for name, part in adapter.items():
        if name not in shapes:
            raise CheckpointError(
                f"{origin}: the adapter is for {name}, which this model does not have"
            )
        found = (len(part.b_OR), part.a_RI.shape[1])
        if found != shapes[name]:
            raise CheckpointError(
                f"{origin}: the adapter of {name} is for a matrix of {list(found)}, but this "
                f"model's is {list(shapes[name])}"
            )


def merge_adapter(
    config: ModelConfig, weights: Mapping[str, Tensor], adapter: Adapter, origin: str
) -> dict[str, Tensor]:
    """Gives the model's named parameters, with W + alpha/r · B·A for those that the adapter
    changes, computed and returned in fp32. The configuration is the merged model's: where the
    adapter changes the embedding or the head, these are two matrices. Raises CheckpointError where
    the adapter is for another model."""
    check_fits(config, adapter, origin)
    merged = dict(weights)
    if {EMBEDDING, HEAD} & set(adapter) and "lm_head.weight" not in weights:
        merged["lm_head.weight"] = weights["embed_tokens.weight"].clone()
    for name, parts in linear_parts(config).items():
        if any(part.name in adapter for part in parts):
            merged[name] = merged[name].to(torch.float32, copy=True)
            matrix_OI = merged[name].view(-1, merged[name].shape[-1])
            for part in parts:
                if part.name in adapter:
                    delta_OI = adapter[part.name].delta().to(matrix_OI.device)
                    matrix_OI[part.rows, part.columns].add_(delta_OI)
    for name in (EMBEDDING, HEAD):
        if name in adapter:
            inside = f"{name.removeprefix('model.')}.weight"
            merged[inside] = adapter[name].delta().to(merged[inside].device).add_(merged[inside])
    return merged
