from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.packing import PackingPlan, build_row, plan_packing
from minimind.errors import ConfigError
from minimind.types import IGNORE_INDEX

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=60)


def _pieces(plan: PackingPlan) -> list[tuple[int, int, int]]:
    arrays = (plan.piece_doc, plan.piece_start, plan.piece_len)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


@given(lengths=LENGTHS, seq_len=st.integers(2, 50), window=st.integers(1, 20))
def test_every_transition_is_in_exactly_one_row(
    lengths: list[int], seq_len: int, window: int
) -> None:
    plan = plan_packing(np.array(lengths), seq_len, window=window, seed=1)
    seen = sorted(
        (doc, token)
        for doc, start, length in _pieces(plan)
        for token in range(start + 1, start + length)
    )
    assert seen == [(doc, t) for doc, length in enumerate(lengths) for t in range(1, length)]
    assert all(length >= 2 for _, _, length in _pieces(plan))


@given(lengths=LENGTHS, seq_len=st.integers(2, 50), window=st.integers(1, 20))
def test_no_row_is_over_full_or_empty_and_short_documents_are_whole(
    lengths: list[int], seq_len: int, window: int
) -> None:
    plan = plan_packing(np.array(lengths), seq_len, window=window)
    fill = np.add.reduceat(plan.piece_len, plan.row_offsets[:-1])
    assert fill.max() <= seq_len
    assert (np.diff(plan.row_offsets) > 0).all()
    assert plan.row_offsets[-1] == len(plan.piece_doc)
    whole = [(doc, 0, n) for doc, n in enumerate(lengths) if n <= seq_len]
    assert set(whole) <= set(_pieces(plan))
    assert plan.num_tokens == fill.sum()
    assert plan.padding_share == pytest.approx(1 - fill.sum() / (plan.num_rows * seq_len))


@given(lengths=LENGTHS, seq_len=st.integers(2, 50))
def test_truncation_keeps_the_head_of_each_document(lengths: list[int], seq_len: int) -> None:
    plan = plan_packing(np.array(lengths), seq_len, split_long=False)
    assert sorted(_pieces(plan)) == [(d, 0, min(n, seq_len)) for d, n in enumerate(lengths)]
    assert plan.num_truncated == sum(n > seq_len for n in lengths)


def test_the_plan_is_a_function_of_lengths_and_seed() -> None:
    lengths = np.random.default_rng(0).integers(2, 300, 5000)
    plans = [plan_packing(lengths, 256, seed=seed) for seed in (3, 3, 4)]
    assert _pieces(plans[0]) == _pieces(plans[1]) != _pieces(plans[2])


@pytest.mark.parametrize("seq_len", [340, 512, 1024, 2048])
@pytest.mark.parametrize("mean", [60, 150, 600])
def test_padding_is_below_two_percent(seq_len: int, mean: int) -> None:
    """On lengths spread as those of real text are, log-normally."""
    generator = np.random.default_rng(seq_len + mean)
    lengths = generator.lognormal(np.log(mean), 0.8, 20_000).astype(np.int64) + 3
    assert plan_packing(lengths, seq_len).padding_share < 0.02


def test_windows_keep_short_documents_out_of_rows_of_their_own() -> None:
    lengths = np.random.default_rng(0).integers(2, 200, 20_000)

    def unevenness(window: int) -> float:
        """Documents a row in the last half of the rows, against the first."""
        per_row = np.diff(plan_packing(lengths, 256, window=window).row_offsets)
        half = len(per_row) // 2
        return per_row[half:].mean() / per_row[:half].mean()

    assert unevenness(1000) < 1.2 < unevenness(len(lengths))


@pytest.mark.parametrize("seq_len", [1, 0, -5])
def test_rows_too_short_to_predict_anything(seq_len: int) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        plan_packing(np.array([5]), seq_len)


@given(
    lens=st.lists(st.integers(1, 9), min_size=0, max_size=6),
    room=st.integers(0, 5),
    masked=st.booleans(),
    data=st.data(),
)
def test_a_row_predicts_within_documents_only(
    lens: list[int], room: int, masked: bool, data: st.DataObject
) -> None:
    seq_len = max(2, sum(lens) + room)
    pieces = []
    for number, length in enumerate(lens):
        ids = np.arange(length, dtype=np.uint16) + 100 * (number + 1)
        mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
        pieces.append((ids, np.array(mask) if masked else None))
    row = build_row(pieces, seq_len, pad_id=7)
    at = 0
    for number, (ids, mask) in enumerate(pieces):
        part = slice(at, at + len(ids))
        assert row.ids_T[part].tolist() == ids.tolist()
        assert row.positions_T[part].tolist() == list(range(len(ids)))
        assert set(row.doc_T[part].tolist()) == {number}
        expected = [
            int(ids[t + 1]) if mask is None or mask[t + 1] else IGNORE_INDEX
            for t in range(len(ids) - 1)
        ]
        assert row.labels_T[part].tolist() == [*expected, IGNORE_INDEX]
        at += len(ids)
    rest = seq_len - at
    assert row.ids_T[at:].tolist() == [7] * rest
    assert row.labels_T[at:].tolist() == [IGNORE_INDEX] * rest
    assert row.positions_T[at:].tolist() == list(range(rest))
    assert row.doc_T[at:].tolist() == [-1] * rest
    assert (row.ids_T.dtype, row.labels_T.dtype, row.positions_T.dtype) == (np.int64,) * 3
    assert row.doc_T.dtype == np.int32
