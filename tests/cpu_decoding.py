"""Takes a decoding step in C++ and in PyTorch, on caches that documents have filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from small_models import EXPERTS, random_documents, random_model, small_config
from torch import Tensor

from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.load import lay_out_for_decoding
from minimind.model.cached_attention import Piece, SlotPlan
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer
from minimind.runtime.compiler import find_cpp_compiler

CPU = torch.device("cpu")
CAPACITY = 64
EXPERTS_16 = [{**changes, "moe_intermediate_size": 48} for changes in EXPERTS]
needs_compiler = pytest.mark.skipif(find_cpp_compiler() is None, reason="needs a C++ compiler")


def model_of(family: str = "qwen3", **changes: Any) -> Transformer:
    model = random_model(small_config(family, **{"head_dim": 16, **changes})).eval()
    lay_out_for_decoding(model)
    return model


def prompted(model: Transformer, lengths: Sequence[int]) -> KVCache:
    """A cache with a document of each length, above 1, in every second slot."""
    dtype = model.lm_head.weight.dtype
    cache = KVCache(model.config, 2 * len(lengths), CAPACITY, dtype=dtype, device=CPU)
    pieces = [Piece(slot=2 * i, start=0, count=n) for i, n in enumerate(lengths)]
    ids = [id for document in random_documents(lengths) for id in document]
    # Single tokens come first, which is what a plan asks for.
    pieces.sort(key=lambda piece: piece.count > 1)
    model.decode(
        torch.tensor(ids), cache, SlotPlan.build(pieces, cache.num_kv_heads, CAPACITY, CPU)
    )
    return cache


def nexts(lengths: Sequence[int]) -> tuple[list[int], list[Piece]]:
    pieces = [Piece(slot=2 * i, start=n, count=1) for i, n in enumerate(lengths)]
    return [(7 * i + 3) % 97 for i in range(len(lengths))], pieces


def by_torch(model: Transformer, cache: KVCache, ids: list[int], pieces: list[Piece]) -> Tensor:
    plan = SlotPlan.build(pieces, cache.num_kv_heads, CAPACITY, CPU)
    return model.decode(torch.tensor(ids), cache, plan)


def by_cpp(decoder: CpuDecode, ids: list[int], pieces: list[Piece]) -> Tensor:
    return cast(Tensor, decoder.decode(ids, pieces, range(len(ids))))
