"""Compares a converted model with its source."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minimind.config.model import ModelConfig
from minimind.data.collate import collate
from minimind.data.packing import build_row
from minimind.errors import CheckpointError
from minimind.interop.source import Source
from minimind.lora.adapter import Adapter
from minimind.model.state_dict import join_part
from minimind.model.transformer import Transformer

_LENGTHS = (5, 1, 26)
"""The lengths of the fixed prompts, in tokens."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Says by how much a result differs from its source, and by how much it may."""

    what: str
    """What was compared, such as "logits"."""
    largest: float
    allowed: float

    def check(self) -> None:
        """Raises CheckpointError where the difference is too large, or no number."""
        if not self.largest <= self.allowed:
            raise CheckpointError(
                f"the result differs from its source: the largest difference of {self.what} is "
                f"{self.largest:.3g}, and {self.allowed:.3g} is allowed. Nothing was written"
            )

    def __str__(self) -> str:
        equal = " (equal)" if self.largest == 0 else ""
        return f"largest difference of {self.what}: {self.largest:.3g}{equal}"


def fixed_prompts(config: ModelConfig) -> list[list[int]]:
    """Gives the prompts that conversions compare on: ids spread over the vocabulary."""
    ids = itertools.count(1)
    return [[next(ids) * 2_654_435_761 % config.vocab_size for _ in range(n)] for n in _LENGTHS]


@torch.no_grad()
def logits_of(source: Source) -> Tensor:
    """Computes the logits of the fixed prompts with the weights in fp32: [32, V], on the CPU. Each
    layer's weights are read before it runs and dropped after it."""
    config, tensors = source.config, source.tensors
    with torch.device("meta"):
        model = Transformer(config).eval()

    def load(module: nn.Module, prefix: str) -> None:
        part = join_part(config, tensors, prefix)
        weights = {name: tensor.float() for name, tensor in part.items()}
        module.load_state_dict(weights, assign=True)

    load(model.embed_tokens, "embed_tokens.")
    load(model.norm, "norm.")
    for i, block in enumerate(model.layers):
        block.register_forward_pre_hook(lambda module, _, i=i: load(module, f"layers.{i}."))
        block.register_forward_hook(_drop_weights)
    model.lm_head.weight = cast(nn.Parameter, model.embed_tokens.weight)
    if not config.tie_word_embeddings:
        load(model.lm_head, "lm_head.")
    found: list[Tensor] = []

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        found.append(hidden_MD @ weight_VD.T)
        return found[0].sum(1)

    prompts = fixed_prompts(config)
    pieces = [(np.array(prompt), None) for prompt in prompts]
    model(collate([build_row(pieces, sum(map(len, prompts)), pad_id=0)]), head)
    return found[0]


def _drop_weights(module: nn.Module, *_: object) -> None:
    module.to("meta")


def check_config(source: Source, result: Source, rounding: float = 0.0) -> None:
    """Raises CheckpointError, which names the field, where the configurations differ. Numbers with
    a fraction may differ by `rounding`, a share of them."""
    found = result.config.to_dict()
    for name, value in source.config.to_dict().items():
        if not _is_alike(value, found[name], rounding):
            raise CheckpointError(
                f"the result differs from its source: its {name} is {found[name]!r}, and that of "
                f"{source.path} is {value!r}. Nothing was written"
            )


def _is_alike(value: Any, found: Any, rounding: float) -> bool:
    if isinstance(value, float) and isinstance(found, float):
        return math.isclose(value, found, rel_tol=rounding)
    if isinstance(value, dict) and isinstance(found, dict):
        alike = (_is_alike(value[name], found.get(name), rounding) for name in value)
        return value.keys() == found.keys() and all(alike)
    return value == found


def model_differences(
    source: Source, result: Source, expected: Callable[[str], Tensor], *, is_exact: bool
) -> list[Difference]:
    """Compares each tensor of the result with the `expected` one of its name, bit by bit, and then
    the logits of the fixed prompts with the source's, which may differ unless `is_exact`. Raises
    CheckpointError where the tensors differ, or have other names."""
    weights = Difference("weights", _largest_of_weights(source, result, expected), 0.0)
    weights.check()
    largest = float((logits_of(source) - logits_of(result)).abs().max())
    return [weights, Difference("logits", largest, 0.0 if is_exact else math.inf)]


def _largest_of_weights(source: Source, result: Source, expected: Callable[[str], Tensor]) -> float:
    if set(source.tensors) != set(result.tensors):
        names = sorted(set(source.tensors) ^ set(result.tensors))
        raise CheckpointError(f"{result.path}: not in both models: {', '.join(names[:5])}")
    differences = [0.0]
    for name in source.tensors:
        wanted, found = expected(name), result.tensors[name]
        if not torch.equal(wanted, found):
            differences.append(float((wanted.float() - found.float()).abs().max()))
    return _largest(differences)


def _largest(values: list[float]) -> float:
    """Gives the largest value, and NaN where one is NaN; Python's `max` may leave it out."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def adapter_difference(source: Adapter, result: Adapter, dtype: str | None) -> Difference:
    """Compares what two adapters add to each linear, as a share of the largest value added. `dtype`
    is the type that the result was written in, fp32 if it is None."""
    differences, size = [0.0], 0.0
    for name in {*source, *result}:
        added = [adapter[name].delta() for adapter in (source, result) if name in adapter]
        difference = added[0] - added[1] if len(added) == 2 else added[0]
        differences.append(float(difference.abs().max()))
        size = max(size, float(added[0].abs().max()))
    return Difference(
        "B·A, as a share of its largest value",
        _largest(differences) / (size or 1.0),
        {
            # B takes scales in, and the product's sums are of another order.
            "fp32": 1e-6,
            "fp16": 2e-3,
            "bf16": 2e-2,
        }[dtype or "fp32"],
    )
