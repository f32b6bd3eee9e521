from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.data import jsonl
from minimind.data.jsonl import BadRow, bad_rows_message, read_lines
from minimind.types import Row


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def _rows(path: Path) -> list[Row | BadRow]:
    with path.open("rb") as file:
        return [row for row, _ in read_lines(file, str(path))]


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}\n\n  \t\n{"a": 2}\n')
    assert _rows(path) == [
        Row(data={"a": 1}, path=str(path), line=1),
        Row(data={"a": 2}, path=str(path), line=4),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'  {"a": 1}  \n\t{"a": 2}\n',
    ],
    ids=["plain", "no last line end", "crlf", "byte-order mark", "spaces"],
)
def test_ways_to_write_two_rows(tmp_path: Path, content: bytes) -> None:
    assert [row.data for row in _rows(_file(tmp_path, content))] == [{"a": 1}, {"a": 2}]


def test_line_separators_inside_a_string_do_not_end_a_row(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd"
    path = _file(tmp_path, json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
    assert [row.data for row in _rows(path)] == [{"text": text}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json at all", "not JSON: Expecting value (column 1)"),
        (b'{"text": "cut', "not JSON: Unterminated string"),
        (b'{"text": "\xff\xfe"}', "not UTF-8: byte 0xff at byte 11"),
        (b"[1,2,3]", "a list where a JSON object is expected"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', 'the key "b" stands twice in one object'),
        (b"null", "null where a JSON object is expected"),
        (b"true", "a boolean where"),
        (b"[" * 100_000, "not usable JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_the_next_one_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = _file(tmp_path, b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = _rows(path)
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert last.line == 3
    assert str(bad).startswith(f"{path}:2: ")
    assert reason in str(bad)


def test_a_line_over_the_limit_is_skipped_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1 << 20)
    path = _file(tmp_path, b'{"a": "' + b"x" * (12 << 20) + b'"}\n{"a": 2}\n')
    bad, good = _rows(path)
    assert "longer than 1 MiB" in str(bad)
    assert isinstance(good, Row)
    assert good.line == 2


def test_offsets_end_at_the_size(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}\nbad\n\n{"a": 2}')
    with path.open("rb") as file:
        offsets = [offset for _, offset in read_lines(file, "rows.jsonl")]
    assert offsets == [9, 13, path.stat().st_size]


def test_a_long_list_of_bad_rows_is_cut_and_counted() -> None:
    bad = [BadRow("f", line, f"why {line}") for line in range(1, 31)]
    lines = bad_rows_message(bad, 2000).splitlines()
    assert lines[0] == "f:1: why 1"
    assert lines[-2:] == ["… and 1,980 more", "2000 bad rows"]
    alike = [BadRow("f", line, "why") for line in range(1, 31)]
    assert bad_rows_message([*alike, BadRow("f", 31, "other")], 31).splitlines() == [
        "f:1: why", "f:2: why", "f:3: why", "f:31: other", "… and 27 more", "31 bad rows",
    ]  # fmt: skip
