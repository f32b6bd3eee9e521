"""JSON arrays as streams: rows across what is read at a time, and where an array breaks."""

from __future__ import annotations

import io
import json

import pytest

from minimind.data import json_array
from minimind.data.jsonl import BadRow
from minimind.errors import DataError
from minimind.types import Row


def read(content: bytes) -> list[Row | BadRow]:
    return [row for row, _ in json_array.read_array(io.BytesIO(content), "a.json")]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_across_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk)
    rows = [{"text": '第\\ "]},{', "n": 12345}, {}, {"a": {"b": [1.5, None, True]}}]
    content = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
    assert [row.data for row in read(content) if isinstance(row, Row)] == rows
    assert read(b" [ ] ") == []


def test_many_brackets_are_no_depth() -> None:
    rows = [{"a": 200 * [[{}]]}, {"a": "[" * 200}]
    assert [row.data for row in read(json.dumps(rows).encode()) if isinstance(row, Row)] == rows


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[\n{"a": 1},\n{"a": ', r"a\.json:3: ends within row 2 of its JSON array: the file"),
        (b'[\n{"a": 1}\n', r"a\.json:3: ends after row 1 of its JSON array, without a \]"),
        (b'[{"a": 1} {"a": 2}]', r"a\.json:1: no JSON array: no comma after row 1"),
        (b'[{"a": 1}]\n{"a": 2}', "goes on after the end of its JSON array, with '{'"),
        (b'[{"a": 1},\n{"a": x, "b": "' + b"y" * 100 + b'"}]', r"a\.json:2: not JSON: Expecting v"),
        (b'[{"a": "\xff"}]', "not UTF-8 near byte 9"),
        (b'[{"a": ' + 100 * b"[" + 100 * b"]" + b"}]", "row 1: not usable JSON: it is nested"),
    ],
)  # fmt: skip
def test_where_an_array_breaks(
    monkeypatch: pytest.MonkeyPatch, chunk: int, content: bytes, said: str
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk)
    with pytest.raises(DataError, match=said):
        read(content)


def test_elements_that_are_no_objects() -> None:
    good, *bad = read(b'[{"a": 1}, 12, [2], "x", null]')
    assert good == Row(data={"a": 1}, path="a.json", line=1, unit="row")
    assert str(bad[0]) == "a.json row 2: a number where a JSON object is expected"
    assert [row.line for row in bad] == [2, 3, 4, 5]
