"""Pairs of answers: rows, cache, packing, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chats import ANSWER, USER
from data_checks import check_middle_is_bad
from data_rows import MakeCache, as_rows
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.chat_format import chat_samples
from minimind.data.jsonl import BadRow
from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.packing import plan_packing
from minimind.data.preference_format import PREFERENCE, preference_samples
from minimind.data.token_cache import TokenCache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.types import IGNORE_INDEX, PairSample, UnitBatch

SEQ_LEN = 96


def pair(number: int, chosen_words: int, rejected_words: int) -> dict[str, list[dict[str, str]]]:
    question = {"role": "user", "content": f"question {number}"}
    texts = (f"good{number} " * chosen_words, f"bad{number} " * rejected_words)
    sides = [[question, {"role": "assistant", "content": text}] for text in texts]
    return {"chosen": sides[0], "rejected": sides[1]}


@pytest.fixture
def cache(cache_of: MakeCache) -> TokenCache:
    """40 pairs of different lengths; two of them do not fit a row."""
    rows = [pair(n, 1 + n % 5, 1 + n % 3) for n in range(38)]
    return cache_of(PREFERENCE, *rows, pair(38, 3, 60), pair(39, 60, 60))


def loader(*caches: TokenCache, **changes: int) -> PackedLoader:
    options = {"seq_len": SEQ_LEN, "rows_per_step": 2, "micro_batch": 2, "pad_id": 0, "seed": 3}
    return PackedLoader([WeightedSource(cache) for cache in caches], **(options | changes))


def test_each_side_is_a_conversation(tokenizer: Tokenizer) -> None:
    row = pair(7, 2, 1)
    (sample,) = preference_samples(as_rows(row), tokenizer)
    assert isinstance(sample, PairSample)
    expected = chat_samples(as_rows(*({"conversations": row[side]} for side in row)), tokenizer)
    for side, alone in zip(sample.documents, expected, strict=True):
        assert not isinstance(alone, BadRow)
        assert side.ids.tolist() == alone.ids.tolist()
        assert side.is_target.tolist() == alone.is_target.tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": None}, '"rejected" is null where a list of turns'),
        ({"chosen": []}, '"chosen" is empty'),
        ({"rejected": [USER]}, '"rejected" has no assistant turn'),
        (
            {"chosen": [USER, {**ANSWER, "content": ""}]},
            'turn 2 of "chosen" (assistant): "content"',
        ),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "are the same"),
    ],
)
def test_bad_pairs_are_named(tokenizer: Tokenizer, change: dict, reason: str) -> None:
    rows = as_rows(pair(0, 1, 2), pair(1, 1, 2) | change, pair(0, 1, 2))
    check_middle_is_bad(preference_samples(rows, tokenizer), reason)


def test_a_side_that_is_missing(cache_of: MakeCache) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no key \"rejected\" \(keys found: 'chos"):
        cache_of(PREFERENCE, {"chosen": [USER, ANSWER]})


def test_the_cache_keeps_both_documents_and_the_line(cache: TokenCache) -> None:
    assert cache.num_documents == 80
    for number in range(40):
        assert {cache.source(2 * number + side) for side in (0, 1)} == {
            f"{cache.path}:{number + 1}"
        }


@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 40)] * 3), min_size=1, max_size=30),
    seq_len=st.integers(9, 60),
    documents_per_unit=st.integers(1, 3),
)
def test_units_stay_whole_and_are_cut_at_one_length(
    lengths: list[tuple[int, int, int]], seq_len: int, documents_per_unit: int
) -> None:
    lengths_UK = np.array(lengths)[:, :documents_per_unit]
    plan = plan_packing(
        lengths_UK.reshape(-1),
        seq_len,
        window=5,
        split_long=False,
        documents_per_unit=documents_per_unit,
    )
    assert (np.add.reduceat(plan.piece_len, plan.row_offsets[:-1]) <= seq_len).all()
    assert (plan.row_offsets % documents_per_unit == 0).all()
    docs_UK = plan.piece_doc.reshape(-1, documents_per_unit)
    assert (docs_UK == docs_UK[:, :1] + np.arange(documents_per_unit)).all()
    assert sorted(docs_UK[:, 0] // documents_per_unit) == list(range(len(lengths)))
    num_cut = 0
    lens_UK = plan.piece_len.reshape(docs_UK.shape)
    for unit, cut in zip(docs_UK[:, 0] // documents_per_unit, lens_UK, strict=True):
        whole = lengths_UK[unit]
        limit = max(n for n in range(seq_len + 1) if np.minimum(whole, n).sum() <= seq_len)
        assert cut.tolist() == np.minimum(whole, limit).tolist()
        num_cut += int((cut < whole).sum())
    assert plan.num_truncated == num_cut


def documents_of(batch: UnitBatch, pairs: PackedLoader) -> dict[int, list[list[int]]]:
    """The ids of both documents of each pair, by its number in the data."""
    ids_M, found = batch.ids_BT.flatten(), {}
    in_data = pairs.rows.plan.piece_doc[::2] // 2
    if (units := pairs.rows.mixture._units) is not None:
        in_data = units[in_data]
    for place, number in enumerate(batch.unit_ids_P.tolist()):
        sides = [ids_M[batch.doc_M == 2 * place + side].tolist() for side in (0, 1)]
        assert bool(sides[0]) == bool(sides[1]) == (number >= 0)
        if number >= 0:
            found[int(in_data[number])] = sides
    return found


def test_batches_say_whose_each_token_is(cache: TokenCache) -> None:
    pairs = loader(cache)
    found: dict[int, list[list[int]]] = {}
    shapes = set()
    for batch in pairs.all_batches():
        assert isinstance(batch, UnitBatch)
        shapes.add((batch.doc_M.shape, batch.unit_ids_P.shape))
        found |= documents_of(batch, pairs)
        assert batch.num_units == int((batch.unit_ids_P >= 0).sum())
        padding = batch.doc_M == 2 * len(batch.unit_ids_P)
        assert (batch.labels_BT.flatten()[padding] == IGNORE_INDEX).all()
        starts = batch.cu_seqlens[:-1].long()
        assert len(batch.doc_M[starts].unique()) == 2 * batch.num_units + bool(padding.any())
    assert len(shapes) == 1
    assert sorted(found) == list(range(40))
    assert pairs.num_units == 40
    for number, sides in found.items():
        for side, ids in enumerate(sides):
            assert ids == cache.tokens(2 * number + side, 0, len(ids)).tolist()
            whole = number < 38 or (number, side) == (38, 0)
            assert (len(ids) == len(cache.tokens(2 * number + side))) == whole
    assert sum(map(len, found[38])) == SEQ_LEN
    assert [len(ids) for ids in found[39]] == [SEQ_LEN // 2] * 2
    assert pairs.rows.plan.num_truncated == 3


def test_a_pair_whose_answers_were_cut_away_is_none(cache_of: MakeCache) -> None:
    long = pair(1, 2, 2)
    for side in long.values():
        side[0]["content"] = "why? " * SEQ_LEN
    pairs = loader(cache_of(PREFERENCE, pair(0, 1, 2), long, pair(2, 1, 2)))
    batches = [batch for batch in pairs.all_batches() if isinstance(batch, UnitBatch)]
    assert pairs.rows.count_lost() == 1
    assert sum(batch.num_units for batch in batches) == 2
    numbers = torch.cat([batch.unit_ids_P for batch in batches]).tolist()
    in_data = pairs.rows.plan.piece_doc[::2] // 2
    assert sorted(in_data[n] for n in numbers if n >= 0) == [0, 2]


def test_several_sources_number_their_pairs_on(cache_of: MakeCache, cache: TokenCache) -> None:
    other = cache_of(PREFERENCE, *(pair(n, 2, 2) for n in range(50, 57)), name="other.jsonl")
    weighted = [WeightedSource(cache, 0.2), WeightedSource(other, 0.8)]
    pairs = PackedLoader(weighted, seq_len=SEQ_LEN, rows_per_step=1, micro_batch=1, pad_id=0)
    found: dict[int, list[list[int]]] = {}
    for batch in pairs.all_batches():
        assert isinstance(batch, UnitBatch)
        for number, sides in documents_of(batch, pairs).items():
            assert found.setdefault(number, sides) == sides
    assert sorted(found) == list(range(47))
    assert found[40][1] == other.tokens(1).tolist()
    assert set(pairs.describe(0, 0)) <= {cache.source(2 * n) for n in range(40)} | {
        other.source(2 * n) for n in range(7)
    }


def test_ranks_share_the_pairs_of_a_step(cache: TokenCache) -> None:
    (whole,) = loader(cache, rows_per_step=4, micro_batch=4).batches(1)
    ranks = [loader(cache, rows_per_step=4, rank=r, world_size=2).batches(1)[0] for r in (0, 1)]
    assert isinstance(whole, UnitBatch)
    parts: dict[int, list[list[int]]] = {}
    for part in ranks:
        assert isinstance(part, UnitBatch)
        parts |= documents_of(part, loader(cache))
    assert parts == documents_of(whole, loader(cache))
    assert len(loader(cache).describe(0, 0)) == loader(cache).batches(0)[0].num_units  # type: ignore[attr-defined]


def test_validation_numbers_its_pairs_after_those_of_training(cache: TokenCache) -> None:
    evaluation = EvalLoader(
        [WeightedSource(cache)], seq_len=SEQ_LEN, micro_batch=3, pad_id=0, first_unit=100
    )
    numbers = [batch.unit_ids_P for batch in evaluation if isinstance(batch, UnitBatch)]
    assert sorted(n for n in torch.cat(numbers).tolist() if n >= 0) == list(range(100, 140))
    for one, other in zip(evaluation, evaluation.all_batches(), strict=True):
        assert torch.equal(one.ids_BT, other.ids_BT)


def test_moving_a_batch_moves_all_of_it(cache: TokenCache) -> None:
    (batch,) = loader(cache).batches(0)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, UnitBatch)
    assert moved.doc_M.is_meta
    assert moved.unit_ids_P.is_meta
    assert moved.num_units == batch.num_units  # type: ignore[attr-defined]
