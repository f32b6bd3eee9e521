from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from minimind.data.collate import collate, collate_units
from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.packing import build_row
from minimind.data.token_cache import TokenCache
from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX, Batch

SEQ_LEN = 32
PAD = 0


@pytest.fixture
def cache(make_cache: Callable[..., TokenCache]) -> TokenCache:
    """Documents of 4 to 80 tokens, each with its number in it."""
    return make_cache([f"{i} " + "ab " * (i % 37) for i in range(150)])


def _loader(cache: TokenCache, **changes) -> PackedLoader:
    options = {
        "seq_len": SEQ_LEN,
        "rows_per_step": 16,
        "micro_batch": 4,
        "pad_id": PAD,
        "seed": 5,
    }
    return PackedLoader([WeightedSource(cache)], **(options | changes))


def _documents(batches: Iterable[Batch]) -> list[tuple[int, ...]]:
    """The pieces in the batches, padding left out."""
    pieces = []
    for batch in batches:
        ids, bounds = batch.ids_BT.flatten().tolist(), batch.cu_seqlens.tolist()
        for start, stop in itertools.pairwise(bounds):
            if any(ids[start:stop]):
                pieces.append(tuple(ids[start:stop]))
    return pieces


def _check_shapes(batch: Batch, rows: int) -> None:
    total = rows * SEQ_LEN
    assert batch.ids_BT.shape == batch.labels_BT.shape == batch.positions_BT.shape
    assert batch.ids_BT.shape == (rows, SEQ_LEN)
    assert batch.ids_BT.dtype == batch.labels_BT.dtype == batch.positions_BT.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    bounds = batch.cu_seqlens.tolist()
    assert batch.bounds == tuple(bounds)
    assert (bounds[0], bounds[-1]) == (0, total)
    lengths = np.diff(bounds)
    assert (lengths > 0).all()
    assert lengths.max() == batch.max_len
    assert set(range(0, total, SEQ_LEN)) <= set(bounds)
    positions = np.concatenate([np.arange(length) for length in lengths])
    assert batch.positions_BT.flatten().tolist() == positions.tolist()
    labels, ids = batch.labels_BT.flatten(), batch.ids_BT.flatten()
    assert batch.num_targets == int((labels != IGNORE_INDEX).sum())
    assert batch.num_tokens == int(batch.is_token_BT.sum())
    assert (labels[torch.tensor(bounds[1:]) - 1] == IGNORE_INDEX).all()
    places = (labels != IGNORE_INDEX).nonzero().flatten()
    assert (labels[places] == ids[places + 1]).all()


def test_batches_are_as_the_types_say(cache: TokenCache) -> None:
    for batch in _loader(cache).batches(0):
        _check_shapes(batch, rows=4)


def test_padding_and_row_ends_are_document_ends() -> None:
    ids = np.arange(1, 6)
    rows = [
        build_row([(ids, None), (ids[:2], None)], 10, PAD),
        build_row([(ids, None), (ids, None)], 10, PAD),
        build_row([], 10, PAD),
    ]
    batch = collate(rows)
    assert batch.cu_seqlens.tolist() == [0, 5, 7, 10, 15, 20, 30]
    assert batch.is_token_BT.tolist() == [[True] * 7 + [False] * 3, [True] * 10, [False] * 10]
    assert (batch.max_len, batch.num_tokens) == (10, 7 + 10)
    assert batch.num_targets == 4 + 1 + 4 + 4


def test_the_hosts_bounds_stay_with_a_batch_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device nobody has to read them back."""
    ids = np.arange(1, 6)
    rows = [build_row([(ids, None), (ids[:2], None)], 10, PAD)]
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    for batch in (collate(rows), collate_units(rows, units_per_row=2)):
        moved = batch.pin_memory().to(torch.device("meta"))
        assert moved.cu_seqlens.is_meta
        assert moved.bounds == batch.bounds == (0, 5, 7, 10)


def test_an_epoch_holds_every_transition_once(cache: TokenCache) -> None:
    loader = _loader(cache, rows_per_step=1, micro_batch=1)
    assert loader.steps(1) == loader.num_rows
    epoch = [loader.batches(step)[0] for step in range(loader.num_rows)]
    found = Counter(pair for piece in _documents(epoch) for pair in itertools.pairwise(piece))
    expected = Counter()
    for document in range(cache.num_documents):
        ids = cache.tokens(document).tolist()
        expected.update(itertools.pairwise(ids))
    assert found == expected
    targets = sum(batch.num_targets for batch in epoch)
    assert targets == cache.num_tokens - cache.num_documents


def rows_of(loader: PackedLoader, step: int) -> list[bytes]:
    """The tokens of each row of a step."""
    return [ids_T.tobytes() for batch in loader.batches(step) for ids_T in batch.ids_BT.numpy()]


def test_epochs_hold_the_same_rows_in_other_orders(cache: TokenCache) -> None:
    loader = _loader(cache, rows_per_step=1, micro_batch=1)
    n = loader.num_rows
    first, second = ([rows_of(loader, s) for s in range(e * n, e * n + n)] for e in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_number_of_ranks_does_not_change_a_step(cache: TokenCache) -> None:
    one = _loader(cache)
    steps = [0, 1, one.steps(1) - 1, one.steps(1) + 3]
    for world_size in (2, 4):
        ranks = [_loader(cache, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step in steps:
            parts = [rank.batches(step) for rank in ranks]
            for k, whole in enumerate(one.batches(step)):
                part = parts[k % world_size][k // world_size]
                assert torch.equal(part.ids_BT, whole.ids_BT)
                assert torch.equal(part.labels_BT, whole.labels_BT)
        assert ranks[0].fingerprint == one.fingerprint


def test_the_micro_batch_does_not_change_the_rows_of_a_step(cache: TokenCache) -> None:
    one, *others = (rows_of(_loader(cache, micro_batch=size), 7) for size in (1, 4, 16))
    assert len(one) == 16
    assert others == [one, one]


def test_resuming_reads_what_would_have_come(cache: TokenCache) -> None:
    whole = list(_loader(cache).read(0, 9))
    resumed = list(_loader(cache).read(5, 9))
    for expected, batches in zip(whole[5:], resumed, strict=True):
        assert all(torch.equal(a.ids_BT, b.ids_BT) for a, b in zip(expected, batches, strict=True))


@pytest.mark.parametrize("pin", [False, True])
def test_batches_are_pinned_in_the_background_where_asked(
    cache: TokenCache, pin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned_by = []

    def pin_memory(batch: Batch) -> Batch:
        pinned_by.append(threading.current_thread())
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin_memory)
    assert len(list(_loader(cache).read(0, 2, pin))) == 2
    assert len(pinned_by) == (8 if pin else 0)
    assert threading.current_thread() not in pinned_by


def test_a_step_may_be_longer_than_an_epoch(make_cache) -> None:
    loader = _loader(make_cache(["a b c"] * 3), rows_per_step=16, micro_batch=16)
    assert loader.num_rows < 16
    (batch,) = loader.batches(0)
    _check_shapes(batch, rows=16)
    assert loader.steps(1) == 1


def test_steps_of_a_part_of_an_epoch(cache: TokenCache) -> None:
    loader = _loader(cache)
    assert loader.steps(1) == math.ceil(loader.num_rows / 16)
    assert loader.steps(2) == math.ceil(2 * loader.num_rows / 16)
    assert loader.steps(0.5) == math.ceil(loader.num_rows / 32)
    exact = _loader(cache, rows_per_step=1, micro_batch=1)
    assert exact.steps(0.1 * 3 / 0.3) == exact.num_rows


def test_descriptions_name_the_lines_of_a_micro_batch(cache: TokenCache) -> None:
    loader = _loader(cache, rank=1, world_size=2)
    described = loader.describe(2, 1)
    pieces = _documents([loader.batches(2)[1]])
    assert len(described) == len(pieces)
    for source, piece in zip(described, pieces, strict=True):
        path, _, line = source.rpartition(":")
        assert path == cache.path
        text = cache.tokens(int(line) - 1).tolist()
        assert any(tuple(text[at : at + len(piece)]) == piece for at in range(len(text)))


def test_seed_and_row_length_change_the_fingerprint(cache: TokenCache) -> None:
    loaders = [_loader(cache), _loader(cache, seed=6), _loader(cache, seq_len=33)]
    assert len({loader.fingerprint for loader in loaders}) == 3
    first, *others = (rows_of(loader, 0) for loader in loaders)
    assert first not in others


@pytest.mark.parametrize(
    "changes", [{"rows_per_step": 6}, {"micro_batch": 0}, {"world_size": 3}, {"rows_per_step": 0}]
)
def test_batch_sizes_that_do_not_fit(cache: TokenCache, changes: dict) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of"):
        _loader(cache, **changes)


def test_a_negative_seed(cache: TokenCache) -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        _loader(cache, seed=-1)


def test_weighted_sources_are_all_read(make_cache) -> None:
    a, b = make_cache(["x"] * 9, "a.jsonl"), make_cache(["y " * 20] * 90, "b.jsonl")
    loader = PackedLoader(
        [WeightedSource(a, 0.5), WeightedSource(b, 0.5)],
        seq_len=SEQ_LEN,
        rows_per_step=1,
        micro_batch=1,
        pad_id=PAD,
    )
    sources = {s for step in range(loader.num_rows) for s in loader.describe(step, 0)}
    assert len(sources) == 99


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_validation_reads_every_document_once(
    cache: TokenCache, world_size: int, micro_batch: int
) -> None:
    ranks = [
        EvalLoader(
            [WeightedSource(cache)],
            seq_len=SEQ_LEN,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            pad_id=PAD,
        )
        for rank in range(world_size)
    ]
    parts = [list(rank) for rank in ranks]
    assert {len(part) for part in parts} == {len(ranks[0])}
    batches = [batch for part in parts for batch in part]
    for batch in batches:
        _check_shapes(batch, rows=micro_batch)
    targets = sum(batch.num_targets for batch in batches)
    assert targets == cache.num_tokens - cache.num_documents
    again = [batch.ids_BT.tolist() for batch in ranks[0]]
    assert again == [batch.ids_BT.tolist() for batch in parts[0]]


def test_validation_on_some_rows_takes_a_fair_part(cache: TokenCache) -> None:
    def loader(max_rows: int) -> EvalLoader:
        source = WeightedSource(cache, 0.5)
        return EvalLoader([source], seq_len=SEQ_LEN, micro_batch=2, pad_id=PAD, max_rows=max_rows)

    some = loader(11)
    assert (some.num_rows, len(some)) == (11, 6)
    everything = {tuple(row) for batch in loader(0) for row in batch.ids_BT.tolist()}
    assert {tuple(r) for b in some for r in b.ids_BT.tolist() if any(r)} <= everything
    assert loader(10**6).num_rows == loader(0).num_rows
