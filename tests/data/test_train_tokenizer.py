from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minimind.data.tokenizer import Tokenizer
from minimind.data.training_texts import read_training_texts, row_texts
from minimind.errors import DataError
from minimind.types import Row

SCRIPT = Path(__file__).parents[2] / "launch" / "train_tokenizer.py"


def _run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_tokenizer_from_both_kinds_of_rows(write_rows, tmp_path: Path) -> None:
    texts = write_rows(["the river of the town, 塔恩的河"] * 50)
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "塔恩的房子"}, {"role": "assistant", "content": "蓝色"}]
    chats.write_text(json.dumps({"conversations": turns}) + "\n" * 2, encoding="utf-8")
    done = _run("--data", texts, chats, "--vocab_size", 310, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "310 tokens" in done.stdout
    assert "bytes a token; round trip" in done.stdout
    assert Tokenizer.load(tmp_path / "out").vocab_size == 310


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


def test_bad_rows_end_it_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "ok"}\nnope\n{"text": 1}\n{"conversations": "x"}\n')
    out = tmp_path / "out"
    done = _run("--data", path, "--output_dir", out)
    assert done.returncode == 2
    for line in (2, 3, 4):
        assert f"{path}:{line}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    skipping = _run(
        "--data", path, "--output_dir", out, "--vocab_size", 292, "--on_bad_row", "skip"
    )
    assert skipping.returncode == 0, skipping.stderr
    assert "3 bad rows skipped" in skipping.stderr


@pytest.mark.parametrize(
    ("data", "vocab_size", "message"),
    [("missing.jsonl", 400, "no such file"), ("a.jsonl", 100, "at least 292")],
)
def test_bad_usage_is_one_clear_line(
    write_rows, tmp_path: Path, data: str, vocab_size: int, message: str
) -> None:
    write_rows(["a"])
    done = _run(
        "--data", tmp_path / data, "--vocab_size", vocab_size, "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_all_texts_of_a_conversation_are_read() -> None:
    turns = [
        {"role": "system", "content": "", "tools": [{"name": "f"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": "[1]"},
        {"role": "user", "content": None},
    ]
    row = Row(data={"conversations": turns}, path="f", line=1)
    assert row_texts(row) == ['[{"name": "f"}]', "a", "r", "[1]"]


def test_bad_rows_of_all_files_are_named_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(b'{"text": "ok"}\nnope\n')
    texts = []
    with pytest.raises(DataError) as caught:
        texts.extend(read_training_texts([str(path) for path in paths]))
    assert all(f"{path}:2: not JSON" in str(caught.value) for path in paths)
