"""Merges adapters into the model that a conversion reads, one tensor at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from minimind.config.model import ModelConfig
from minimind.interop.source import LazyTensor, LazyTensors, Source, SourceAdapter
from minimind.lora.adapter import EMBEDDING, HEAD, Adapter, LoraPart, check_fits


def merge_into(base: Source, adapter: SourceAdapter, origin: str) -> Source:
    """Gives the model that `base` and the adapter make. Raises CheckpointError where the adapter is
    for another model."""
    config = base.config
    if {EMBEDDING, HEAD} & set(adapter.parts):
        config = replace(config, tie_word_embeddings=False)
    tensors = merged_tensors(config, base.tensors, adapter.parts, origin)
    note = f"the adapter {origin} was merged into its base, {adapter.base}"
    notes = [*base.notes, note]
    return replace(base, config=config, tensors=tensors, adapter=adapter, notes=notes)


def merged_tensors(
    config: ModelConfig, base: LazyTensors, adapter: Adapter, origin: str
) -> LazyTensors:
    """Gives the tensors of `base`, with W + alpha/r · B·A in fp32 for those that the adapter
    changes; where it changes the embedding or the head, and the base has one matrix for both, that
    becomes two. Raises CheckpointError where the adapter is for another model."""
    check_fits(config, adapter, origin)
    entries = dict(base.entries)
    if {EMBEDDING, HEAD} & set(adapter):
        entries.setdefault(f"{HEAD}.weight", entries[f"{EMBEDDING}.weight"])
    for name, part in adapter.items():
        weight = entries[f"{name}.weight"]

        def read(weight: LazyTensor = weight, part: LoraPart = part) -> torch.Tensor:
            return part.delta().add_(weight.read().float())

        entries[f"{name}.weight"] = LazyTensor(weight.shape, torch.float32, read)
    return LazyTensors(entries, origin)
