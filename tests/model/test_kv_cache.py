"""Decoding through the cache against the whole forward, made again at every step."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
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

from minimind.model.cached_attention import Piece, SlotPlan
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer

CPU = torch.device("cpu")


class OneSequence:
    """A cache with one sequence in it, which grows."""

    def __init__(self, model: Transformer, capacity: int, slot: int = 0) -> None:
        self.model, self.slot, self.length = model, slot, 0
        self.cache = KVCache(model.config, slot + 1, capacity, dtype=torch.float32, device=CPU)

    def decode(self, ids: Sequence[int]) -> Tensor:
        """Logits [V] after the last of `ids`."""
        piece = Piece(slot=self.slot, start=self.length, count=len(ids))
        plan = SlotPlan.build([piece], self.cache.num_kv_heads, self.cache.capacity, CPU)
        self.length += len(ids)
        return self.model.decode(torch.tensor(ids), self.cache, plan, torch.tensor([len(ids) - 1]))[
            0
        ]


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
    sequence = OneSequence(model, length + 12, slot=length % 3)
    logits = sequence.decode(ids)
    for _ in range(12):
        torch.testing.assert_close(logits, whole(model, ids), atol=2e-5, rtol=1e-4)
        token = int(logits.argmax())
        assert token == int(whole(model, ids).argmax())
        ids.append(token)
        logits = sequence.decode([token])
    assert (logits.dtype, logits.shape) == (torch.float32, (97,))


@pytest.mark.parametrize("pieces", [[5, 12], [5, 2, 10], [1, 16], [16, 1], [3, 1, 1, 5, 7]])
def test_a_prompt_in_pieces_is_the_prompt_at_once(pieces: list[int]):
    model = random_model(small_config()).eval()
    (ids,) = random_documents([17])
    once, parts = OneSequence(model, 20), OneSequence(model, 20)
    expected = once.decode(ids)
    found = torch.empty(0)
    for piece in torch.tensor(ids).split(pieces):
        found = parts.decode(piece.tolist())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(once.cache.layers, parts.cache.layers, strict=True):
        torch.testing.assert_close(one.keys_SKCH, other.keys_SKCH)
        torch.testing.assert_close(one.values_SKCH, other.values_SKCH)


def test_the_capacity_changes_nothing():
    model = random_model(small_config()).eval()
    (ids,) = random_documents([6])
    tight, wide = OneSequence(model, 6), OneSequence(model, 500)
    for layer in wide.cache.layers:
        layer.keys_SKCH.fill_(float("nan"))
        layer.values_SKCH.fill_(float("nan"))
    torch.testing.assert_close(wide.decode(ids), tight.decode(ids))


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
    sequence = OneSequence(model, 2200)
    sequence.decode(ids[:2100])
    for token in ids[2100:-1]:
        sequence.decode([token])
    logits = sequence.decode(ids[-1:])
    torch.testing.assert_close(logits, whole(model, ids), atol=1e-4, rtol=1e-3)
    expected = reference_logits(model, ids)[-1]
    torch.testing.assert_close(logits.double(), expected, atol=2e-3, rtol=1e-2)
    plain = random_model(small_config(**{**config.to_dict(), "rope_scaling": None}))
    assert (whole(plain, ids) - logits).abs().max() > 0.05, "YaRN must show at this length"


@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [0, 2, 3, 6], [5, 1, 4, 2]], ids=str)
def test_sequences_side_by_side_are_each_alone(slots: list[int]):
    """Single tokens in neighbouring and scattered slots, of like and unlike lengths, beside pieces
    of prompts; what the cache held before does not matter."""
    model = random_model(small_config()).eval()
    documents = random_documents([9, 40, 7, 330])
    steps = [
        {0: 8, 1: 12, 2: 3, 3: 320},
        {0: 1, 1: 1, 2: 1, 3: 1},
        {1: 20, 2: 2, 3: 4},
        {1: 1, 2: 1, 3: 3},
        {1: 6, 3: 1},
    ]
    cache = KVCache(model.config, 7, 400, dtype=torch.float32, device=CPU)
    for layer in cache.layers:
        layer.keys_SKCH.normal_()
        layer.values_SKCH.normal_()
    done = [0] * 4
    for step in steps:
        pieces = {i: Piece(slot=slots[i], start=done[i], count=n) for i, n in step.items()}
        order = sorted(pieces, key=lambda i: (pieces[i].count > 1, pieces[i].slot))
        plan = SlotPlan.build([pieces[i] for i in order], cache.num_kv_heads, 400, CPU)
        ids = [token for i in order for token in documents[i][done[i] : done[i] + step[i]]]
        logits_MV = model.decode(torch.tensor(ids), cache, plan)
        row = 0
        for i in order:
            done[i] += step[i]
            row += step[i]
            expected = whole(model, documents[i][: done[i]])
            torch.testing.assert_close(logits_MV[row - 1], expected, atol=5e-5, rtol=1e-4)
    assert done == [9, 40, 7, 329]


def test_neighbours_of_like_length_are_one_product():
    def runs(*pieces: tuple[int, int]) -> list[tuple[int, int, int]]:
        singles = [Piece(slot=slot, start=end - 1, count=1) for slot, end in pieces]
        plan = SlotPlan.build(singles, 2, 4000, CPU)
        return [(run.first_slot, run.num_slots, run.length) for run in plan.runs]

    assert runs((0, 10), (1, 90), (2, 50)) == [(0, 3, 90)]
    assert runs((0, 10), (2, 10), (3, 11)) == [(0, 1, 10), (2, 2, 11)]
    assert runs((0, 3000), (1, 10), (2, 12)) == [(0, 1, 3000), (1, 2, 12)]
    assert runs((4, 7)) == [(4, 1, 7)]


def test_a_prefix_is_copied_into_another_slot():
    model = random_model(small_config()).eval()
    (ids,) = random_documents([12])
    sequence = OneSequence(model, 20, slot=1)
    sequence.decode(ids[:8])
    sequence.cache.copy_prefix(1, 0, 8)
    sequence.slot = 0
    torch.testing.assert_close(sequence.decode(ids[8:]), whole(model, ids), atol=2e-5, rtol=1e-4)


def test_keys_are_stored_once_per_key_head():
    sequence = OneSequence(random_model(small_config(num_key_value_heads=1)), 9)
    assert [layer.keys_SKCH.shape for layer in sequence.cache.layers] == [(1, 1, 9, 12)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_sequence_reached_takes_no_memory(dtype: torch.dtype):
    """In a process of its own: one that has trained fills its freed memory with zeros."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        grown = processes.submit(bytes_of_an_empty_cache, dtype).result()
    bytes_per_token = 2 * 2 * 2 * 12 * dtype.itemsize
    assert grown < 0.1 * 64 * 32768 * bytes_per_token


def bytes_of_an_empty_cache(dtype: torch.dtype) -> int:
    config = small_config()
    before = psutil.Process().memory_info().rss
    cache = KVCache(config, 64, 32768, dtype=dtype, device=CPU)
    assert cache.layers[0].keys_SKCH.numel() == 64 * 32768 * 2 * 12
    assert not cache.layers[1].values_SKCH[63, 1, -1].any()
    return psutil.Process().memory_info().rss - before


def test_decoding_records_no_gradient():
    assert not OneSequence(random_model(small_config()), 1).decode([3]).requires_grad
