"""Which form a file is in: told by its first rows or by name, and the same for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimind.data.chat_format import CHAT
from minimind.data.dialects import find_dialect
from minimind.data.jsonl import BadRow
from minimind.data.loader import PackedLoader, WeightedSource
from minimind.data.rows import ALL_KINDS, DIALECTS, FORMAT_NAMES, open_rows, users_of
from minimind.data.text_format import TEXT
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.data.training_texts import read_training_texts
from minimind.errors import ConfigError, DataError

OWN = {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
OPENAI = {"messages": OWN["conversations"]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
ALPACA = {"instruction": "q", "output": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def write(tmp_path: Path):
    """write(*rows, name="a.jsonl") -> the file."""

    def write_rows(*rows: Any, name: str = "a.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_rows


@pytest.mark.parametrize(
    ("row", "name"),
    [(OWN, "minimind"), (OPENAI, "openai"), (SHAREGPT, "sharegpt"), (ALPACA, "alpaca")],
)
def test_the_first_row_tells(write, row: dict[str, Any], name: str) -> None:
    reader = open_rows(write("{broken", row, row), ("chat",))
    assert reader.dialect is not None
    assert reader.dialect.name == name
    bad, *good = [row for row, _ in reader]
    assert isinstance(bad, BadRow)
    assert [row.data for row in good] == [OWN, OWN]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (
            OWN,
            OPENAI,
            "is in the form of OpenAI's messages, and {0}:1 in that of the proj",
        ),
        (
            OPENAI,
            SHAREGPT,
            "is in the form of ShareGPT (from, value), and {0}:1 in that of Open",
        ),
        (ALPACA, OWN, "is in the form of the project's own form, and {0}:1 in that of Alpaca"),
        (OPENAI, {"a": 1}, "is not in the form of OpenAI's messages, as the rows before it (keys "),
    ],
)
def test_a_mixture_names_both_lines(
    write, tokenizer: Tokenizer, first: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    path = write(first, first, other)
    with pytest.raises(DataError) as caught:
        build_token_cache(path, tokenizer, CHAT)
    assert f"{path}:3: {said.format(path)}" in str(caught.value)
    assert build_token_cache(path, tokenizer, CHAT, on_bad_row="skip").num_skipped == 1


@pytest.mark.parametrize("row", [OWN, PAIR, {"text": "a"}, {"data": []}])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_rows_of_another_kind_are_named_in_one_sentence(
    write, kind: str, row: dict[str, Any]
) -> None:
    readable = {"text": [{"text": "a"}], "chat": [OWN], "preference": [PAIR], "unpaired": [OWN],
                "prompt": [OWN, PAIR]}  # fmt: skip
    path = write(*[row] * 30)
    is_read = find_dialect(DIALECTS[kind], row) is not None
    if kind in readable:
        assert is_read == (row in readable[kind])
    if is_read:
        open_rows(path, (kind,))
        return
    with pytest.raises(DataError) as caught:
        open_rows(path, (kind,))
    said = str(caught.value)
    assert said.startswith(f"{path}:1: is in ")
    assert "\n" not in said
    assert users_of([kind]) in said
    if row == PAIR:
        assert "for --stage dpo and not for" in said


def test_a_name_takes_the_place_of_the_first_rows(write, tokenizer: Tokenizer) -> None:
    both = {**ALPACA, "prompt": "p", "completion": "c"}
    path = write(both)
    reader = open_rows(path, ("chat",))
    assert reader.dialect is not None
    assert reader.dialect.name == "alpaca"
    keys = {build_token_cache(path, tokenizer, CHAT, format_name=n).key for n in (None, "alpaca")}
    keys.add(build_token_cache(path, tokenizer, CHAT, format_name="trl").key)
    assert len(keys) == 2
    with pytest.raises(
        DataError, match=r"in the form of Alpaca .*; --format openai is \{.*leave --format out"
    ):
        open_rows(path, ("chat",), "openai")
    with pytest.raises(ConfigError, match=r"--format hh-rlhf: rows for --stage sft, lora and dist"):
        open_rows(path, ("chat",), "hh-rlhf")
    with pytest.raises(ConfigError, match="--format paragraphs is about plain text"):
        open_rows(path, ("text",), "paragraphs")
    assert set(FORMAT_NAMES) >= {"minimind", "openai", "sharegpt", "alpaca", "trl", "paragraphs"}


def test_plain_text_is_for_pretraining(write, tokenizer: Tokenizer) -> None:
    path = write("one", "", "two", name="a.txt")
    counts = {}
    for name in (None, "document", "paragraphs"):
        counts[name] = build_token_cache(path, tokenizer, TEXT, format_name=name).num_documents
    assert counts == {None: 1, "document": 1, "paragraphs": 2}
    with pytest.raises(DataError, match=r"a\.txt: is plain text, .*not for --stage sft"):
        build_token_cache(path, tokenizer, CHAT)


def test_a_table_of_conversations(write, tmp_path: Path, tokenizer: Tokenizer) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    call = {"name": "f", "arguments": '{"a": 1}'}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "a", "weight": 1}]
    # Each turn of the table has all columns.
    table = arrow.Table.from_pylist([{"messages": turns, "prompt": None, "id": "x"}, OPENAI])
    assert table.to_pylist()[1]["messages"][0]["weight"] is None
    parquet.write_table(table, tmp_path / "a.parquet")
    cache = build_token_cache(tmp_path / "a.parquet", tokenizer, CHAT)
    own = build_token_cache(write({"messages": turns}, OPENAI), tokenizer, CHAT)
    for number in range(2):
        assert cache.tokens(number).tolist() == own.tokens(number).tolist()
    assert cache.source(1) == f"{tmp_path / 'a.parquet'} row 2"
    assert cache.unread == {"'id'": 1}


def test_a_folder_says_where_its_rows_stand(write, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write({"text": "b"}, {"text": ""}, name="data/2.jsonl")
    write({"text": ""}, {"text": "a"}, {"text": "c"}, name="data/1.jsonl")
    (folder / "3.json").write_text(json.dumps([{"text": 5}, {"text": "d"}]))
    cache = build_token_cache(folder, tokenizer, on_bad_row="skip")
    places = [cache.source(number).removeprefix(f"{folder}/") for number in range(4)]
    assert places == ["1.jsonl:2", "1.jsonl:3", "2.jsonl:1", "3.json row 2"]
    assert [str(row).split(": ")[0].removeprefix(f"{folder}/") for row in cache.skipped] == [
        "1.jsonl:1", "2.jsonl:2", "3.json row 1",
    ]  # fmt: skip
    plain = build_token_cache(write({"text": "d"}, name="d.jsonl"), tokenizer)
    loader = PackedLoader(
        [WeightedSource(cache, 0.5), WeightedSource(plain, 0.5)],
        seq_len=16, rows_per_step=1, micro_batch=1, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    sources = {place for step in range(loader.steps(1)) for place in loader.describe(step, 0)}
    assert sources == {f"{folder}/{place}" for place in places} | {f"{plain.path}:1"}


def test_a_tokenizer_is_trained_on_rows_of_any_kind(
    write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tools = [{"name": "f"}]
    paths = [
        write("plain", "", "text", name="a.txt"),
        write({**OPENAI, "tools": tools, "system": "s", "id": 7}, name="b.jsonl"),
        write({**PAIR, "chosen": "a", "rejected": "b"}, name="c.jsonl"),
        write({"prompt": "p", "gt": "4"}, name="d.jsonl"),
    ]
    texts = list(read_training_texts([str(path) for path in paths]))
    assert texts == ["plain\n\ntext", "s", json.dumps(tools), "q", "a", "q", "a", "b", "p"]
    assert f"{paths[1]}: OpenAI's messages" in caplog.messages
    assert f"{paths[1]}: of 1 rows some carry what is not read: 'id' (1)" in caplog.messages
    parts = read_training_texts([str(paths[0])], format_name="paragraphs")
    assert list(parts) == ["plain", "text"]
