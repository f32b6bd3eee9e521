"""Decoding through the cache against the whole forward, made again at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import (
    FAMILIES,
    logits_of,
    pack,
    random_documents,
    random_model,
    reference_logits,
    small_config,
)
from torch import Tensor

from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer

CPU = torch.device("cpu")


def cache_for(model: Transformer, capacity: int) -> KVCache:
    return KVCache(model.config, capacity, dtype=torch.float32, device=CPU)


def whole(model: Transformer, ids: list[int]) -> Tensor:
    """Logits [V] after the last of `ids`, by the forward that trains."""
    with torch.no_grad():
        return logits_of(model, pack([[ids]]))[-1]


@pytest.mark.parametrize("length", [1, 2, 7, 33])
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 1}, {"tie_word_embeddings": False}], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_the_whole_forward_at_each_step(
    family: str, changes: dict[str, Any], length: int
):
    model = random_model(small_config(family, **changes)).eval()
    (ids,) = random_documents([length], seed=length)
    cache = cache_for(model, length + 12)
    logits = model.decode(torch.tensor(ids), cache)
    for _ in range(12):
        torch.testing.assert_close(logits, whole(model, ids), atol=2e-5, rtol=1e-4)
        token = int(logits.argmax())
        assert token == int(whole(model, ids).argmax())
        ids.append(token)
        logits = model.decode(torch.tensor([token]), cache)
    assert cache.length == len(ids)
    assert (logits.dtype, logits.shape) == (torch.float32, (97,))


@pytest.mark.parametrize("pieces", [[5, 12], [5, 2, 10], [1, 16], [16, 1], [3, 1, 1, 5, 7]])
def test_a_prompt_in_pieces_is_the_prompt_at_once(pieces: list[int]):
    model = random_model(small_config()).eval()
    (ids,) = random_documents([17])
    once, parts = cache_for(model, 20), cache_for(model, 20)
    expected = model.decode(torch.tensor(ids), once)
    found = torch.empty(0)
    for piece in torch.tensor(ids).split(pieces):
        found = model.decode(piece, parts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(once.layers, parts.layers, strict=True):
        torch.testing.assert_close(one.keys_KTH[:, :17], other.keys_KTH[:, :17])
        torch.testing.assert_close(one.values_KTH[:, :17], other.values_KTH[:, :17])


def test_the_capacity_changes_nothing():
    model = random_model(small_config()).eval()
    (ids,) = random_documents([6])
    tight, wide = cache_for(model, 6), cache_for(model, 500)
    for layer in wide.layers:
        layer.keys_KTH.fill_(float("nan"))
        layer.values_KTH.fill_(float("nan"))
    found = model.decode(torch.tensor(ids), wide)
    torch.testing.assert_close(found, model.decode(torch.tensor(ids), tight))


def test_contexts_beyond_the_original_length_with_yarn():
    """2,200 tokens, the last of them decoded one by one, against the plain model in fp64 and
    against the same tokens as a training row."""
    config = small_config(
        hidden_size=16,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        rope_scaling="yarn",
    )
    model = random_model(config).eval()
    (ids,) = random_documents([2200])
    cache = cache_for(model, 2200)
    model.decode(torch.tensor(ids[:2100]), cache)
    for token in ids[2100:-1]:
        model.decode(torch.tensor([token]), cache)
    logits = model.decode(torch.tensor(ids[-1:]), cache)
    torch.testing.assert_close(logits, whole(model, ids), atol=1e-4, rtol=1e-3)
    expected = reference_logits(model, ids)[-1]
    torch.testing.assert_close(logits.double(), expected, atol=2e-3, rtol=1e-2)
    plain = random_model(small_config(**{**config.to_dict(), "rope_scaling": None}))
    assert (whole(plain, ids) - logits).abs().max() > 0.05, "YaRN must show at this length"


def test_keys_are_stored_once_per_key_head():
    model = random_model(small_config(num_key_value_heads=1))
    cache = cache_for(model, 9)
    assert [layer.keys_KTH.shape for layer in cache.layers] == [(1, 9, 12)] * 2
    model.decode(torch.tensor([3, 4]), cache)
    assert cache.length == 2


def test_decoding_records_no_gradient():
    model = random_model(small_config())
    assert not model.decode(torch.tensor([3]), cache_for(model, 1)).requires_grad
