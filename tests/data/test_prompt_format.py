"""Prompts: what a row must hold, what the model is asked, and how batches give each one once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from chats import ANSWER, CALL, TOOLS, USER
from data_checks import check_middle_is_bad
from data_rows import MakeCache, as_rows

from minimind.data.chat_encoding import ChatEncoder
from minimind.data.chat_format import read_chat
from minimind.data.jsonl import BadRow
from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.packing import plan_unpacked
from minimind.data.prompt_format import PROMPT, Prompt, PromptBatch, prompt_samples
from minimind.data.token_cache import TokenCache
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.types import Batch, Sample

SYSTEM = {"role": "system", "content": "be brief"}
EMPTY = {"role": "assistant", "content": ""}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESPONSE = {"role": "tool", "content": "1"}


def read(tokenizer: Tokenizer, *rows: dict[str, Any], **options: bool) -> list[Sample | BadRow]:
    return prompt_samples(as_rows(*rows), tokenizer, **options)


def row(number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"question {number} " + "ab " * (number % 7)}, EMPTY]
    return {"conversations": turns, "gt": {"n": number, "text": "数"}}


def loader(cache: TokenCache, **changes: int) -> PackedLoader:
    options = {"seq_len": 96, "rows_per_step": 4, "micro_batch": 2, "pad_id": 0}
    return PackedLoader([WeightedSource(cache)], **(options | changes))


def checked(batch: Batch) -> PromptBatch:
    assert isinstance(batch, PromptBatch)
    assert batch.count == len(batch.prompts)
    return batch


def prompts_of(batch: Batch) -> tuple[Prompt, ...]:
    return checked(batch).prompts


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("end", [[], [EMPTY], [{"role": "assistant", "content": None}]])
@pytest.mark.parametrize(
    "turns",
    [
        [USER],
        [SYSTEM, USER, ANSWER, USER],
        [{**SYSTEM, "tools": json.dumps(TOOLS)}, USER],
        [{**SYSTEM, "tools": TOOLS}, USER, CALLING, RESPONSE],
    ],
)
def test_ids_are_those_a_chat_would_go_on_from(
    tokenizer: Tokenizer, turns: list[dict[str, Any]], end: list[dict[str, Any]], thinking: bool
) -> None:
    data = {"conversations": turns + end, "gt": 7}
    (sample,) = read(tokenizer, data, thinking=thinking)
    assert isinstance(sample, Sample)
    chat = read_chat(turns, "turns", needs_answer=False)
    assert sample.ids.tolist() == ChatEncoder(tokenizer).prompt_ids(chat, thinking)
    assert not sample.is_target.any()
    assert json.loads(sample.meta["row"]) == data
    shows_tools = "<tools>" in tokenizer.decode(sample.ids.tolist())
    assert shows_tools == ("tools" in turns[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": "hi"}, '"conversations" is a string where a list'),
        ({"conversations": []}, '"conversations" is empty'),
        ({"conversations": [USER, ANSWER]}, "is an answer already: leave it empty or out"),
        ({"conversations": [USER, CALLING]}, "is an answer already"),
        ({"conversations": [SYSTEM]}, '"conversations" ends in a turn of the system'),
        ({"conversations": [USER, ANSWER, EMPTY]}, "ends in a turn of the assistant"),
        ({"conversations": [EMPTY]}, "holds no turn but the empty one"),
        ({"conversations": [USER, EMPTY, USER]}, "turn 2 of"),
        ({"conversations": [{"role": "user", "content": " "}]}, '"content" is blank'),
        ({"answer": 8}, '"gt" and "answer" differ'),
        ({"conversations": [{"role": "user", "content": "\ud800"}]}, "half a character"),
    ],
)
def test_bad_rows_are_named(tokenizer: Tokenizer, change: dict[str, Any], reason: str) -> None:
    check_middle_is_bad(read(tokenizer, row(0), row(1) | change, row(2)), reason)


def test_a_row_without_conversations_and_one_with_the_answer_twice(tokenizer: Tokenizer) -> None:
    bad, good = read(tokenizer, {"gt": 1}, {**row(1), "answer": row(1)["gt"]})
    assert isinstance(bad, BadRow)
    assert 'no key "conversations"' in bad.reason
    assert isinstance(good, Sample)


def test_each_prompt_comes_once_an_epoch_with_its_row(cache_of: MakeCache) -> None:
    rows = [row(number) for number in range(12)]
    cache = cache_of(PROMPT, *rows)
    prompts = loader(cache)
    assert (prompts.num_rows, prompts.num_units) == (12, 12)
    for epoch in range(2):
        found = []
        for step in range(3 * epoch, 3 * epoch + 3):
            for batch in map(checked, prompts.batches(step)):
                for place, prompt in enumerate(batch.prompts):
                    assert prompt.place == place
                    assert batch.unit_ids_P[place] == prompt.unit
                    found.append(prompt)
        assert sorted(prompt.unit for prompt in found) == list(range(12))
        for prompt in found:
            assert prompt.row == rows[prompt.unit]
            assert list(prompt.ids) == cache.tokens(prompt.unit).tolist()


def test_ranks_read_the_same_rows(cache_of: MakeCache) -> None:
    cache = cache_of(PROMPT, *map(row, range(10)))
    alone = [prompt.row for batch in loader(cache).batches(1) for prompt in prompts_of(batch)]
    ranks = [loader(cache, rank=rank, world_size=2) for rank in range(2)]
    shared = [prompt.row for rank in ranks for b in rank.batches(1) for prompt in prompts_of(b)]
    assert shared == alone
    assert {rank.fingerprint for rank in ranks} == {loader(cache).fingerprint}


def test_validation_fills_its_last_batch_with_nothing(cache_of: MakeCache) -> None:
    cache = cache_of(PROMPT, *map(row, range(5)))
    prompts = EvalLoader(
        [WeightedSource(cache)], seq_len=96, micro_batch=3, pad_id=0, first_unit=100
    )
    batches = [checked(batch) for batch in prompts]
    assert [batch.count for batch in batches] == [3, 2]
    assert batches[1].ids_BT.shape == (3, 96)
    assert batches[1].unit_ids_P.tolist() == [103, 104, -1]
    units = [prompt.unit for batch in batches for prompt in batch.prompts]
    assert units == [100, 101, 102, 103, 104]
    moved = batches[0].to(torch.device("meta"))
    assert moved.ids_BT.is_meta
    assert moved.prompts == batches[0].prompts


def test_thinking_is_another_cache(cache_of: MakeCache, tokenizer: Tokenizer) -> None:
    plain, thinking = (
        cache_of(each, row(1)) for each in (PROMPT, PROMPT.with_options(thinking=True))
    )
    assert plain.key != thinking.key
    assert plain.tokens(0).tolist() != thinking.tokens(0).tolist()
    assert tokenizer.decode(thinking.tokens(0).tolist()).endswith("<think>\n")


def test_a_prompt_longer_than_a_row_is_left_out_and_said(
    cache_of: MakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"conversations": [{"role": "user", "content": "why " * 100}]}
    prompts = loader(cache_of(PROMPT, row(0), long, row(2), row(3)))
    assert "1 of 4 prompts are longer than a row of 96 tokens and are left out" in caplog.text
    rows = [prompt.row for batch in prompts.all_batches() for prompt in prompts_of(batch)]
    assert long not in rows
    assert prompts.num_units == 3
    assert prompts.rows.count_lost() == 0
    with pytest.raises(ConfigError, match="none of 2 prompts fits a row of 4 tokens"):
        plan_unpacked(np.array([5, 6]), 4)
