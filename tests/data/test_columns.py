"""What a row brings beside its text reaches the batch, at the place of its document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_rows import MakeCache

from minimind.data.collate import collate_units
from minimind.data.formats import TEXT_COLUMN
from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.text_format import TEXT, text_samples
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.types import Row, Sample, UnitBatch

SEQ_LEN = 40


def read(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Sample]:
    samples = text_samples(rows, tokenizer)
    return [
        replace(sample, meta={name: row.data[name] for name in ("score", "is_good", "answer")})
        for row, sample in zip(rows, samples, strict=True)
        if isinstance(sample, Sample)
    ]


SCORED = replace(
    TEXT,
    name="scored",
    split_long=False,
    read=read,
    collate=collate_units,
    columns={"score": "float32", "is_good": "bool", "answer": TEXT_COLUMN},
)


@pytest.fixture
def cache(cache_of: MakeCache) -> TokenCache:
    """30 short documents; each says its own number, and so does what it brings."""
    rows = [
        {
            "text": f"number {number} " * (1 + number % 3),
            "score": number / 4,
            "is_good": number % 3 == 0,
            "answer": "塔" * (number % 4) + str(number),
        }
        for number in range(30)
    ]
    return cache_of(SCORED, *rows, name="scored.jsonl")


def numbers_by_place(batch: UnitBatch, tokenizer: Tokenizer) -> list[int | None]:
    """The number that the document at each place says of itself."""
    found: list[int | None] = []
    ids_M = batch.ids_BT.flatten()
    for place in range(len(batch.unit_ids_P)):
        ids = ids_M[batch.doc_M == place].tolist()
        found.append(int(tokenizer.decode(ids).split()[1]) if ids else None)
    return found


def check(batch: object, tokenizer: Tokenizer) -> list[int]:
    """Checks every place of a batch; gives the numbers it holds."""
    assert isinstance(batch, UnitBatch)
    score_P, is_good_P, answers = (batch.meta[name] for name in ("score", "is_good", "answer"))
    assert (score_P.dtype, is_good_P.dtype) == (torch.float32, torch.bool)
    numbers = numbers_by_place(batch, tokenizer)
    assert len(numbers) == len(score_P) == len(is_good_P) == len(answers)
    for place, number in enumerate(numbers):
        assert (batch.unit_ids_P[place] >= 0) == (number is not None)
        brought = (score_P[place].item(), is_good_P[place].item(), answers[place])
        if number is None:
            assert brought == (0.0, False, "")
        else:
            assert brought == (number / 4, number % 3 == 0, "塔" * (number % 4) + str(number))
    assert batch.count == batch.num_units == sum(number is not None for number in numbers)
    return [number for number in numbers if number is not None]


def test_each_document_keeps_what_its_row_brought(cache: TokenCache, tokenizer: Tokenizer) -> None:
    loader = PackedLoader(
        [WeightedSource(cache)], seq_len=SEQ_LEN, rows_per_step=2, micro_batch=2, pad_id=0
    )
    assert loader.rows.plan.padding_share > 0, "some places are free"
    found: list[int] = []
    for batch in loader.all_batches():
        found += check(batch, tokenizer)
    assert set(found) == set(range(30))


def test_so_it_does_in_a_mixture_that_repeats_it(
    cache: TokenCache, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(cache.path).read_text("utf-8").splitlines(True)[:3]), "utf-8")
    other = build_token_cache(few, tokenizer, SCORED)
    loader = PackedLoader(
        [WeightedSource(cache, 0.6), WeightedSource(other, 0.4)],
        seq_len=SEQ_LEN, rows_per_step=1, micro_batch=1, pad_id=0,
    )  # fmt: skip
    found: list[int] = []
    for batch in loader.all_batches():
        found += check(batch, tokenizer)
    assert found.count(1) > 2
    ids = [int(n) for b in loader.all_batches() for n in b.unit_ids_P if n >= 0]  # type: ignore[attr-defined]
    assert sorted(ids) == list(range(loader.num_units)), "each time it is a unit of its own"


def test_so_it_does_in_validation(cache: TokenCache, tokenizer: Tokenizer) -> None:
    batches = list(EvalLoader([WeightedSource(cache)], seq_len=SEQ_LEN, micro_batch=4, pad_id=0))
    assert sorted(n for batch in batches for n in check(batch, tokenizer)) == list(range(30))
    moved = batches[0].to(torch.device("meta"))
    assert isinstance(moved, UnitBatch)
    assert moved.meta["score"].is_meta


def test_a_batch_of_padding_brings_nothing_at_every_place(
    cache: TokenCache, tokenizer: Tokenizer
) -> None:
    loader = PackedLoader(
        [WeightedSource(cache)], seq_len=SEQ_LEN, rows_per_step=1, micro_batch=1, pad_id=0
    )
    assert check(loader.rows.batch([], 2), tokenizer) == []


def test_the_cache_is_mapped_again_and_one_cut_short_is_not(
    cache: TokenCache, tokenizer: Tokenizer
) -> None:
    whole = [cache.meta(number) for number in range(30)]
    assert whole[7] == {"score": np.float32(1.75), "is_good": False, "answer": "塔塔塔7"}
    for name in ("meta_score", "meta_answer", "meta_answer_offsets"):
        file = cache.folder / f"{name}.bin"
        file.write_bytes(file.read_bytes()[:-1])
        again = build_token_cache(cache.path, tokenizer, SCORED)
        assert [again.meta(number) for number in range(30)] == whole
    other = replace(SCORED, columns={**SCORED.columns, "score": "float64"})
    assert build_token_cache(cache.path, tokenizer, other).key != cache.key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "high"}, '"score" is "high"; it must be float32'),
        ({"score": None}, '"score" is null; it must be float32'),
        ({"score": 1e300}, '"score" is 1e+300; it must be float32'),
        ({"is_good": "false"}, '"is_good" is "false"; it must be bool'),
        ({"is_good": 1}, '"is_good" is 1; it must be bool'),
        ({"answer": 7}, '"answer" is 7; it must be text'),
        ({"answer": "\ud800"}, '"answer" holds half a character'),
    ],
)
def test_a_value_of_another_kind_is_a_bad_row(
    cache_of: MakeCache, change: dict[str, object], reason: str
) -> None:
    good = {"text": "a", "score": 1, "is_good": True, "answer": ""}
    with pytest.raises(DataError) as caught:
        cache_of(SCORED, good, good | change)
    assert f"rows.jsonl:2: {reason}" in str(caught.value)


def test_texts_may_all_be_empty(cache_of: MakeCache) -> None:
    row = {"text": "a", "score": 1, "is_good": True, "answer": ""}
    cache = cache_of(SCORED, row, row, row)
    assert [cache.meta(number)["answer"] for number in range(3)] == [""] * 3
