"""Defines what a conversion reads: a model's configuration, weights and tokenizer, whatever files
they came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.interop.training_record import TrainingRecord
from minimind.lora.adapter import Adapter
from minimind.model.state_dict import outside_shapes

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """Describes one tensor that is on disk until `read` is called."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Maps names to tensors. Each access reads one tensor from disk, and nothing keeps it: so a
    conversion that takes one at a time needs memory for the largest alone."""

    def __init__(self, entries: Mapping[str, LazyTensor], origin: str) -> None:
        """`origin` names the files in messages."""
        self.entries = dict(entries)
        self.origin = origin

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor. Raises CheckpointError where it has another shape than its entry says, or
        holds NaN or infinity."""
        entry = self.entries[name]
        tensor = entry.read()
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(
                f"{self.origin}: {name} is {list(tensor.shape)}, where {list(entry.shape)} was "
                "announced"
            )
        check_finite(tensor, f"{self.origin}: {name}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        """Tells whether there is a tensor of that name; Mapping's own would read it from disk."""
        return name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAdapter:
    """Holds the adapter that was merged into a source's tensors."""

    parts: Adapter
    base: Path
    """The folder of the model that the adapter belongs to."""
    base_name: str
    """The name of that model in the adapter's files."""
    dropout: float = 0.0
    """The dropout that it was trained with. Nothing here uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Holds a model that is to be converted. `open_source` (readers.py) makes one."""

    path: Path
    """Where the model was found, for messages."""
    config: ModelConfig
    tensors: LazyTensors
    """All weights under Hugging Face's names; no lm_head.weight where the configuration ties it."""
    tokenizer: Path | None = None
    """The tokenizer's folder."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user about assumptions and changes on the way."""
    training: TrainingRecord | None = None
    """The record of the model's training, for its card; None where it is not known."""
    beside: tuple[Path, ...] = ()
    """Files that lay beside the weights and tokenizer, such as a license."""
    adapter: SourceAdapter | None = None
    """The adapter that is merged into the tensors, if the source is an adapter."""

    @property
    def dtype(self) -> torch.dtype:
        """Gives the narrowest dtype that holds every weight exactly."""
        return functools.reduce(torch.promote_types, map(self.tensors.dtype, self.tensors))


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises CheckpointError, which `name` begins, where a value is NaN or infinite."""
    if not _is_finite(tensor):
        num_bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name} holds {num_bad:,} values that are NaN or infinite: take a checkpoint from "
            "before the training failed"
        )


def cast_finite(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Gives the tensor in `dtype`. Raises CheckpointError, which `name` begins, for a value that is
    too large for it, NaN or infinite."""
    cast = tensor.to(dtype)
    if not _is_finite(cast):
        check_finite(tensor, name)
        raise CheckpointError(
            f"{name} holds {float(tensor.abs().max()):.4g}, which is too large for {dtype}: use "
            "--dtype bf16 or fp32"
        )
    return cast


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite unless a value is not, or they overflow together; it needs no other tensor.
    total = tensor.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def check_tensors(config: ModelConfig, tensors: LazyTensors) -> LazyTensors:
    """Gives the tensors of this model. An output head that equals the embedding it is tied to is
    left out. Raises CheckpointError that names a missing, unexpected or misshapen tensor."""
    origin, entries = tensors.origin, dict(tensors.entries)
    if config.tie_word_embeddings and HEAD in entries and EMBEDDING in entries:
        if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            raise CheckpointError(
                f"{origin}: {HEAD} differs from the embedding, but the configuration ties them: "
                "set tie_word_embeddings to false"
            )
        del entries[HEAD]
    shapes = outside_shapes(config)
    for name, shape in shapes.items():
        if name not in entries:
            raise CheckpointError(f"{origin}: the tensor {name} is missing")
        found = entries[name].shape
        if found != shape:
            raise CheckpointError(
                f"{origin}: {name} is {list(found)}, but this model's is {list(shape)}"
            )
    if others := sorted(set(entries) - set(shapes)):
        raise CheckpointError(f"{origin}: not of this model: {', '.join(others[:5])}")
    return LazyTensors({name: entries[name] for name in shapes}, origin)
