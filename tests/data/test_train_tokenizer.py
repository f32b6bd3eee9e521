from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_rows import as_rows

from minimind.cli.main import run_verb
from minimind.data.tokenizer import Tokenizer
from minimind.data.training_texts import read_training_texts, row_texts
from minimind.errors import DataError

Captured = pytest.CaptureFixture[str]


def test_a_tokenizer_from_both_kinds_of_rows(write_rows, tmp_path: Path, capsys: Captured) -> None:
    texts = write_rows(["the river of the town, 塔恩的河"] * 50)
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "塔恩的房子"}, {"role": "assistant", "content": "蓝色"}]
    chats.write_text(json.dumps({"conversations": turns}) + "\n" * 2, encoding="utf-8")
    out = tmp_path / "out"
    flags = ("--vocab_size", "310", "--output_dir", str(out))
    assert run_verb("tokenizer", ["--data", str(texts), str(chats), *flags]) == 0
    said = capsys.readouterr().out
    assert "310 tokens" in said
    assert "bytes a token; round trip" in said
    assert Tokenizer.load(out).vocab_size == 310


def test_only_the_beginning_of_each_source_is_read(tmp_path: Path) -> None:
    """Bad rows of the part that is read are still named."""
    rows = [{"text": f"row {n}"} for n in range(9)]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [str(path) for path in paths]
    bytes_of_two = 2 * len(json.dumps(rows[0])) + 2
    assert list(read_training_texts(names, max_bytes=bytes_of_two)) == ["row 0", "row 1"] * 2
    assert len(list(read_training_texts(names, max_bytes=10**9))) == 18
    paths[0].write_text("nope\n" + paths[0].read_text())
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        list(read_training_texts(names, max_bytes=bytes_of_two))


def test_bad_rows_end_it_with_status_2(
    tmp_path: Path, capsys: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out"
    path.write_bytes(b'{"text": "ok"}\nnope\n{"text": 1}\n{"conversations": "x"}\n')
    argv = ["--data", str(path), "--output_dir", str(out), "--vocab_size", "292"]
    assert run_verb("tokenizer", argv) == 2
    said = capsys.readouterr().err
    for line in (2, 3, 4):
        assert f"{path}:{line}: " in said
    assert not out.exists()
    assert run_verb("tokenizer", [*argv, "--on_bad_row", "skip"]) == 0
    assert "3 bad rows skipped" in caplog.text


@pytest.mark.parametrize(
    ("data", "vocab_size", "message"),
    [("missing.jsonl", "400", "no such file"), ("a.jsonl", "100", "at least 292")],
)
def test_bad_usage_is_one_clear_line(
    write_rows, tmp_path: Path, data: str, vocab_size: str, message: str, capsys: Captured
) -> None:
    write_rows(["a"])
    argv = ["--data", str(tmp_path / data), "--output_dir", str(tmp_path / "out")]
    assert run_verb("tokenizer", [*argv, "--vocab_size", vocab_size]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_all_texts_of_a_conversation_are_read() -> None:
    turns = [
        {"role": "system", "content": "", "tools": [{"name": "f"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": "[1]"},
        {"role": "user", "content": None},
    ]
    (row,) = as_rows({"conversations": turns})
    assert row_texts(row) == ['[{"name": "f"}]', "a", "r", "[1]"]


def test_bad_rows_of_all_files_are_named_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(b'{"text": "ok"}\nnope\n')
    texts = []
    with pytest.raises(DataError) as caught:
        texts.extend(read_training_texts([str(path) for path in paths]))
    assert all(f"{path}:2: not JSON" in str(caught.value) for path in paths)
