"""Answers with a label: what a row must hold, and the mismatched answers of a batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from chats import ANSWER, USER
from data_checks import check_middle_is_bad
from data_rows import MakeCache, as_rows

from minimind.data.chat_format import chat_samples
from minimind.data.jsonl import BadRow
from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.token_cache import TokenCache, build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.data.unpaired_format import (
    UNPAIRED,
    UnpairedBatch,
    unpaired_samples,
)
from minimind.samples.files import UNPAIRED_DATA, sample_data_path
from minimind.types import IGNORE_INDEX, Sample, UnitBatch

SEQ_LEN = 160


def row(number: int, words: int = 2, question: str = "question") -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"{question} {number}"},
        {"role": "assistant", "content": f"answer{number} " * words},
    ]
    return {"conversations": turns, "label": number % 3 == 0}


def read(tokenizer: Tokenizer, *rows: dict[str, Any]) -> list[Sample | BadRow]:
    return unpaired_samples(as_rows(*rows), tokenizer)


def loader(cache: TokenCache, **changes: int) -> PackedLoader:
    options = {"seq_len": SEQ_LEN, "rows_per_step": 2, "micro_batch": 2, "pad_id": 0}
    return PackedLoader([WeightedSource(cache)], **(options | changes))


def test_the_last_answer_alone_is_a_target(tokenizer: Tokenizer) -> None:
    turns = [USER, ANSWER, {"role": "user", "content": "and?"}, {**ANSWER, "content": "well"}]
    (sample,) = read(tokenizer, {"conversations": turns, "label": True})
    (chat,) = chat_samples(as_rows({"conversations": turns}), tokenizer)
    assert isinstance(sample, Sample)
    assert isinstance(chat, Sample)
    assert sample.ids.tolist() == chat.ids.tolist()
    targets = sample.ids[sample.is_target].tolist()
    assert tokenizer.decode(targets) == "<think>\n\n</think>\n\nwell\n"
    assert targets == chat.ids[chat.is_target].tolist()[-len(targets) :]
    assert sample.meta == {"label": True}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "true"}, '"label" is a string where true or false is expected'),
        ({"label": 1}, '"label" is a number where true or false is expected'),
        ({"label": None}, '"label" is null where true or false is expected'),
        ({"conversations": []}, '"conversations" is empty'),
        ({"conversations": [USER]}, '"conversations" has no assistant turn'),
        (
            {"conversations": [USER, ANSWER, USER]},
            'the last turn of "conversations" is of the user',
        ),
    ],
)
def test_bad_rows_are_named(tokenizer: Tokenizer, change: dict[str, Any], reason: str) -> None:
    check_middle_is_bad(read(tokenizer, row(0), row(1) | change, row(2)), reason)


@pytest.mark.parametrize("key", ["conversations", "label"])
def test_a_key_that_is_missing(tokenizer: Tokenizer, key: str) -> None:
    (bad,) = read(tokenizer, {name: value for name, value in row(1).items() if name != key})
    assert isinstance(bad, BadRow)
    assert f'no key "{key}"' in bad.reason
    assert '"label": true' in bad.reason


def documents_of(batch: UnitBatch) -> dict[int, tuple[list[int], list[int]]]:
    """(prompt, answer) by unit: what comes before its targets, and from the first of them on."""
    ids_M, labels_M = batch.ids_BT.flatten(), batch.labels_BT.flatten()
    found = {}
    for place, unit in enumerate(batch.unit_ids_P.tolist()):
        if unit >= 0:
            ids = ids_M[batch.doc_M == place].tolist()
            labels = labels_M[batch.doc_M == place].tolist()
            at = next(t for t, label in enumerate(labels) if label != IGNORE_INDEX) + 1
            assert all(
                label in (IGNORE_INDEX, after)
                for label, after in zip(labels, [*ids[1:], IGNORE_INDEX], strict=True)
            )
            found[unit] = (ids[:at], ids[at:])
    return found


def test_each_prompt_gets_the_answer_before_it_in_its_row(cache_of: MakeCache) -> None:
    cache = cache_of(UNPAIRED, *(row(n, 1 + n % 3) for n in range(40)))
    answers = loader(cache)
    seen: dict[int, bool] = {}
    checked = 0
    for batch in answers.all_batches():
        assert isinstance(batch, UnpairedBatch)
        seen |= zip(batch.unit_ids_P.tolist(), batch.meta["label"].tolist(), strict=True)
        assert batch.mismatched.ids_BT.shape == batch.ids_BT.shape
        assert torch.equal(batch.mismatched.is_token_BT, batch.is_token_BT)
        own, other = documents_of(batch), documents_of(batch.mismatched)
        per_row = len(batch.unit_ids_P) // len(batch.ids_BT)
        for ids in batch.unit_ids_P.view(-1, per_row).tolist():
            units = [unit for unit in ids if unit >= 0]
            if len(units) == 1:
                assert not other.keys() & units
                continue
            checked += len(units)
            for unit, before in zip(units, [units[-1], *units[:-1]], strict=True):
                assert other[unit] == (own[unit][0], own[before][1])
    seen.pop(-1, None)
    assert len(seen) == 40
    assert checked > 30
    assert sum(seen.values()) == 14


def test_a_repeated_answer_is_no_other_answer(cache_of: MakeCache) -> None:
    """As where a mixture reads a small file often: copies stand side by side in a row."""
    same = [row(3, 2) for _ in range(3)]
    (batch,) = loader(cache_of(UNPAIRED, *same, row(4, 2), *same), rows_per_step=1, micro_batch=1,
                      seq_len=640).batches(0)  # fmt: skip
    assert isinstance(batch, UnpairedBatch)
    own, other = documents_of(batch), documents_of(batch.mismatched)
    assert len(own) == 7
    assert len(other) == 2, "of seven answers one is different: it takes and gives a place"
    for unit, (prompt, answer) in other.items():
        assert prompt == own[unit][0]
        assert answer != own[unit][1]


def test_an_answer_alone_in_its_row_has_no_other(cache_of: MakeCache) -> None:
    (batch,) = loader(cache_of(UNPAIRED, row(0, 30), row(3, 30))).batches(0)
    assert isinstance(batch, UnpairedBatch)
    assert (batch.count, batch.mismatched.count) == (2, 0)
    assert batch.mismatched.num_targets == 0


def test_an_answer_that_was_cut_away_takes_no_part(cache_of: MakeCache) -> None:
    long = row(1, question="why " * SEQ_LEN)
    answers = loader(cache_of(UNPAIRED, row(0), long, row(2)), rows_per_step=2)
    batches = list(answers.all_batches())
    assert sum(batch.count for batch in batches) == 2
    assert answers.rows.count_lost() == 1


def test_batches_of_padding_and_of_another_device(cache_of: MakeCache) -> None:
    cache = cache_of(UNPAIRED, *map(row, range(5)))
    (batch,) = EvalLoader(
        [WeightedSource(cache)], seq_len=128, micro_batch=4, pad_id=0, first_unit=100
    )
    assert isinstance(batch, UnpairedBatch)
    assert sorted(documents_of(batch)) == sorted(documents_of(batch.mismatched))
    assert batch.count == 5
    assert batch.meta["label"].shape == batch.unit_ids_P.shape
    moved = batch.to(torch.device("meta"))
    assert moved.mismatched.ids_BT.is_meta
    assert moved.meta["label"].is_meta


def test_the_sample_has_good_and_bad_answers_of_both_splits(tokenizer: Tokenizer) -> None:
    asked = {}
    for split in ("train", "val"):
        path = sample_data_path(split, UNPAIRED_DATA)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        labels = [row["label"] for row in rows]
        assert 0.49 < sum(labels) / len(labels) < 0.51
        asked[split] = {row["conversations"][0]["content"]: row["conversations"][1] for row in rows}
        cache = build_token_cache(path, tokenizer, UNPAIRED)
        assert (cache.num_skipped, cache.num_documents) == (0, len(rows))
    assert asked["val"].keys() - asked["train"].keys()
