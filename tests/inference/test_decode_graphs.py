"""What a CUDA graph of decoding holds, run without one; the graphs themselves need a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_models import FAMILIES, random_documents, random_model, small_config

from minimind.data.sample_text import load_sample_tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.decode_graphs import decode_inputs, graph_inputs
from minimind.inference.request import Completion, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.cached_attention import Piece, SlotPlan
from minimind.model.kv_cache import KVCache

CPU = torch.device("cpu")


@pytest.mark.parametrize(("batch", "length"), [(3, 33), (4, 40), (8, 64)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_the_batch(family: str, batch: int, length: int):
    """The same logits and the same cache as by views of it."""
    model = random_model(small_config(family)).eval()
    caches = [KVCache(model.config, 6, 64, dtype=torch.float32, device=CPU) for _ in range(2)]
    slots, lengths = (1, 2, 5), (4, 32, 17)
    documents = random_documents([n + 1 for n in lengths])
    prompts = [Piece(slot=s, start=0, count=n) for s, n in zip(slots, lengths, strict=True)]
    prompt_ids = torch.tensor([i for d in documents for i in d[:-1]])
    for cache in caches:
        model.decode(prompt_ids, cache, SlotPlan.build(prompts, cache.num_kv_heads, 64, CPU))
    nexts = [Piece(slot=s, start=n, count=1) for s, n in zip(slots, lengths, strict=True)]
    ids = [document[-1] for document in documents]
    by_views, by_gathering = caches
    plan = SlotPlan.build(nexts, by_views.num_kv_heads, 64, CPU)
    expected = model.decode(torch.tensor(ids), by_views, plan)
    inputs_3B = graph_inputs(ids, nexts, batch)
    assert inputs_3B.shape == (3, batch)
    found = decode_inputs(model, by_gathering, inputs_3B, length)
    torch.testing.assert_close(found[:3], expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(by_views.layers, by_gathering.layers, strict=True):
        torch.testing.assert_close(one.keys_SKCH, other.keys_SKCH, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.values_SKCH, other.values_SKCH, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_graphs_change_nothing():
    model = random_model(small_config()).eval().cuda()
    prompts = random_documents([5, 40, 1, 17, 33, 300, 2])
    requests = [
        GenerationRequest(prompt_ids=p, params=SamplingParams(max_new_tokens=n))
        for p, n in zip(prompts, (30, 9, 20, 30, 3, 30, 25), strict=True)
    ]

    def completions(fast_decode: bool) -> list[Completion]:
        engine = BatchEngine(
            model, load_sample_tokenizer(), max_batch=5, max_tokens=2000, fast_decode=fast_decode
        )
        found = engine.generate(requests)
        return [dataclasses.replace(one, request_id=0) for one in found]

    assert completions(True) == completions(False)
