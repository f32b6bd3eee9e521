"""Sources of rows: every kind of file gives the same rows, and what cannot be read is named in one
sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from data_rows import ARRAY, LINES, ROWS, case_id, read

from minimind.data.containers import PARAGRAPHS
from minimind.data.data_file import find_data, read_rows, scan_data
from minimind.data.jsonl import BadRow
from minimind.errors import ConfigError, DataError
from minimind.types import Row


def parquet(path: Path) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.Table.from_pylist([{**ROWS[0]}, *({"text": row["text"]} for row in ROWS[1:])])
    parquet.write_table(table, path, row_group_size=2)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "described"),
    [
        ("a.jsonl", LINES, ""),
        ("a.json", LINES, ""),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n"), ""),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES, ""),
        ("a.json", ARRAY, "a JSON array"),
        ("a.jsonl", b"\xef\xbb\xbf \n" + ARRAY + b"\n", "a JSON array"),
        ("a.json", json.dumps(ROWS).encode(), "a JSON array"),
        ("a.jsonl.gz", gzip.compress(LINES), "JSON lines compressed by gzip"),
        ("a.jsonl", gzip.compress(LINES), "JSON lines compressed by gzip"),
        ("a.json.gz", gzip.compress(ARRAY), "a JSON array compressed by gzip"),
        ("a.bz2", bz2.compress(LINES), "JSON lines compressed by bzip2"),
        ("a.xz", lzma.compress(LINES), "JSON lines compressed by xz"),
        ("a.txt", LINES, ""),
    ],
    ids=case_id,
)
def test_the_same_rows_in_every_file(
    tmp_path: Path, name: str, content: bytes, described: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows = read(path)
    assert [row.data for row in rows if isinstance(row, Row)] == ROWS
    assert [row.line for row in rows] == [1, 2, 3]
    assert find_data(path).describe() == described


def test_parquet_is_read_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path)
    rows = read(path)
    texts = [{"text": row["text"]} for row in ROWS]
    assert [row.data for row in rows if isinstance(row, Row)] == [texts[0] | {"n": 1}, *texts[1:]]
    assert str(BadRow.of(rows[2], "why")) == f"{path} row 3: why"  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.parquet: is a Parquet file that cannot be read"):
        read(path)


def test_fields_that_arrow_filled_in_are_no_fields(tmp_path: Path) -> None:
    """Arrow gives each object of a column the keys of all: calls with other arguments, schemas."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    calls = [[{"name": "f", "arguments": {"city": "x"}}], [{"name": "g", "arguments": {"day": 1}}]]
    schema = [
        {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
        {"name": "g", "parameters": {"properties": {"b": {"type": "int", "enum": [1, 2]}}}},
    ]
    rows = [
        {"turns": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": one}],
         "tools": schema}
        for one in calls
    ]  # fmt: skip
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert (
        "day"
        in pyarrow.parquet.read_table(path).to_pylist()[0]["turns"][1]["tool_calls"][0]["arguments"]
    )
    assert [row.data for row, _ in read_rows(find_data(path))] == rows


def test_maps_of_parquet_are_objects(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pairs = [[("role", "user"), ("content", "q")], [("role", "user"), ("role", "tool")]]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"turns": pyarrow.array([[pairs[0]], [pairs[1]]], kind)})
    parquet.write_table(table, path)
    (row, _), (bad, _) = read_rows(find_data(path))
    assert isinstance(row, Row)
    assert row.data == {"turns": [{"role": "user", "content": "q"}]}
    assert str(bad) == f'{path} row 2: the key "role" stands twice in one object'


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and more")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'minimind\[parquet\]'"):
        find_data(path)


def test_a_text_is_one_document_or_several(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeff\r\none\r\n two\r\n\r\n \t\r\n三\r\n".encode())
    (row,) = read(path)
    assert isinstance(row, Row)
    assert row.data == {"text": "one\n two\n\n \t\n三"}
    file = find_data(path)
    parts = [row for row, _ in read_rows(file.as_plain_text(PARAGRAPHS))]
    assert parts == [
        Row(data={"text": "one\n two"}, path=str(path), line=2),
        Row(data={"text": "三"}, path=str(path), line=6),
    ]
    assert file.kinds != file.as_plain_text(PARAGRAPHS).kinds
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(LINES)
    with pytest.raises(
        ConfigError, match=r"--format paragraphs is about plain text, and .*a\.jsonl"
    ):
        find_data(lines).as_plain_text(PARAGRAPHS)


@pytest.mark.parametrize("text", ["---\ntitle: a\n", "ORC", "BZh", "<html>", "[1]", "{"])
def test_texts_that_look_like_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    (row,) = read(path)
    assert isinstance(row, Row)
    assert row.data == {"text": text.strip("\n")}


@pytest.mark.parametrize("text", ['[{"text": "a"}, {"text": "b"}]', '[\n  {\n   "text": "a"}]\n'])
def test_an_array_under_the_name_of_a_text_is_read_as_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert find_data(path).members[0].container.name == "json array"


def test_a_text_with_a_bad_byte_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("ü\nü\n".encode() + b"caf\xe9\n")
    (bad,) = read(path)
    assert str(bad) == f"{path}:3: not UTF-8: byte 0xe9"


def test_a_folder_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_bytes(LINES)
    (tmp_path / "sub" / "c.json.gz").write_bytes(gzip.compress(ARRAY))
    (tmp_path / "a.TXT").write_bytes(b"a document")
    (tmp_path / "README.md").write_bytes(b"no data")
    file = scan_data(tmp_path)
    assert [Path(member.path).name for member in file.members] == ["a.TXT", "b.jsonl", "c.json.gz"]
    rows = [row for row, _ in read_rows(file)]
    assert len(rows) == 7
    assert rows[0].path.endswith("a.TXT")
    assert file.text_size is None
    kinds = "plain text, each file a document and JSON lines and a JSON array compressed by gzip"
    assert file.describe() == f"3 files, {kinds} (not read: README.md)"
    assert len({scan_data(tmp_path).digest, file.digest}) == 1
    pattern = scan_data(tmp_path / "*.jsonl")
    assert [member.path for member in pattern.members] == [str(tmp_path / "b.jsonl")]
    assert pattern.digest == scan_data(tmp_path / "b.jsonl").digest


def test_texts_in_other_files_have_another_digest(tmp_path: Path) -> None:
    digests = set()
    for number, texts in enumerate((["ab", "c"], ["a", "bc"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in zip("xy", texts, strict=True):
            (folder / f"{name}.txt").write_text(text)
        digests.add(scan_data(folder).digest)
    assert len(digests) == 2


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in "abc")
    one.write_bytes(b"{}\n")
    same.write_bytes(b"{}\n")
    other.write_bytes(b"{} \n")
    assert scan_data(one).digest == scan_data(same).digest != scan_data(other).digest
    assert scan_data(other).size == 4


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress])
def test_offsets_count_the_text(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(compress(LINES))
    file = find_data(path)
    assert [offset for _, offset in read_rows(file)][-1] == len(LINES)
    assert file.text_size in (None, len(LINES))
