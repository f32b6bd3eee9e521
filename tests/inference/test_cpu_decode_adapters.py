"""Decoding in C++ with adapters, against the same in PyTorch."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from cpu_decoding import (
    CAPACITY,
    EXPERTS_16,
    by_cpp,
    by_torch,
    model_of,
    needs_compiler,
    nexts,
    prompted,
)
from small_adapters import named, random_adapter
from small_engines import engine_of, request
from small_models import random_documents
from torch import Tensor

from minimind.inference.cpu_decode import CpuDecode
from minimind.lora.adapter import merge_adapter
from minimind.lora.loaded import LoadedAdapters

pytestmark = pytest.mark.usefixtures("compiling")


@needs_compiler
def test_adapters_come_and_go() -> None:
    """Steps under an adapter, without one and under merged weights say what PyTorch says."""
    model = model_of()
    adapters = LoadedAdapters(model)
    poet = random_adapter(model.config)
    adapters.add("poet", poet)

    def answers(fast_decode: bool) -> list[tuple[int, ...]]:
        engine = engine_of(model, 4, CAPACITY, adapters=adapters, fast_decode=fast_decode)
        requests = [
            dataclasses.replace(request(ids, new=12), adapter=name)
            for ids, name in zip(random_documents([9, 9, 20, 4]), ("poet", None) * 2, strict=True)
        ]
        return [completion.ids for completion in engine.generate(requests)]

    assert answers(True) == answers(False)
    adapters.activate({})
    cache = prompted(model, [5])
    decoder = CpuDecode(model, cache)
    ids, pieces = nexts([5])
    before = by_cpp(decoder, ids, pieces)
    adapters.activate({"poet": 1.0})
    beside = decoder.decode(ids, pieces, [0], adapters.num_switches)
    torch.testing.assert_close(beside, by_torch(model, cache, ids, pieces), atol=2e-5, rtol=1e-5)
    adapters.activate({})
    bare = decoder.decode(ids, pieces, [0], adapters.num_switches)
    assert torch.equal(cast(Tensor, bare), before)
    model.load_named(merge_adapter(model.config, named(model), poet, "poet"))
    merged = by_cpp(decoder, ids, pieces)
    torch.testing.assert_close(merged, by_torch(model, cache, ids, pieces), atol=2e-5, rtol=1e-5)
    assert (before - merged).abs().max() > 0.01


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_shared_experts(dtype: torch.dtype) -> None:
    """Those of attention and shared experts are known; those of the experts' stacks are not."""
    model = model_of(**EXPERTS_16[2]).to(dtype)
    whole = random_adapter(model.config)
    adapters = LoadedAdapters(model)
    adapters.add("whole", whole)
    adapters.add("part", {name: part for name, part in whole.items() if ".experts." not in name})
    lengths = [5, 9, 2]
    ids, pieces = nexts(lengths)
    adapters.activate({"part": 1.0})
    cache = prompted(model, lengths)
    decoder = CpuDecode(model, cache)
    found = by_cpp(decoder, ids, pieces)
    expected = by_torch(model.double(), prompted(model, lengths), ids, pieces)
    limit = 1e-5 if dtype == torch.float32 else 0.03
    assert (found - expected).norm() < limit * expected.norm()
    model.to(dtype)
    adapters.activate({"whole": 1.0})
    assert decoder.decode(ids, pieces, [0, 1, 2], adapters.num_switches) is None
