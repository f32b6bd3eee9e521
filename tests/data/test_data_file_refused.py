"""Files and folders that are no data: each is named in a sentence."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from data_rows import LINES, case_id, read

from minimind.data.data_file import find_data
from minimind.data.jsonl import BadRow
from minimind.errors import DataError


@pytest.mark.faults("a folder without data, or with several splits", "named")
def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without a file of \.jsonl"):
        find_data(tmp_path)
    for name in ("train-00000.jsonl", "test-00000.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    with pytest.raises(DataError, match=r"holds several splits \(test, train\)"):
        find_data(tmp_path)
    assert find_data(tmp_path / "train-*").path.endswith("train-*")
    with pytest.raises(DataError, match="no file has such a name"):
        find_data(tmp_path / "none-*.jsonl")


CHINESE = '{"text": "小镇的河水涨了，没有人在意。"}\n' * 5


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", CHINESE.encode("utf-16"), "is UTF-16, and only UTF-8 is read: convert"),
        ("a.jsonl", CHINESE.encode("utf-32"), "is UTF-32"),
        ("a.jsonl", LINES.decode().encode("utf-16-le"), "is UTF-16LE"),
        ("a.jsonl", LINES.decode().encode("utf-16-be"), "is UTF-16BE"),
        ("a.jsonl", CHINESE.encode("gbk"), r"is GBK \(GB18030\) by its bytes"),
        ("a.txt", ("小镇的河水涨了\n" * 9000).encode("gbk"), "iconv -f GB18030 -t UTF-8"),
        ("a.jsonl", ('{"text": "déjà vu, naïve"}\n' * 5).encode("latin-1"), "is not UTF-8 in any"),
        ("a.txt", "これは日本語の文章です。\n".encode("cp932"), "is Shift-JIS .*iconv -f CP932"),
        ("a.txt", "川の水が増えました。\n".encode("euc_jp"), "is EUC-JP by its bytes"),
        ("a.txt", "人們都說今年的雨比往年多。\n".encode("big5"), "is Big5 by its bytes"),
        ("a.txt", "마을의 강물이 불어났습니다. 사람들이 말했다.\n".encode("cp949"), "is EUC-KR by"),
        ("a.txt", "Река поднялась, люди\n".encode("cp1251"), "is Windows-1251 by its bytes"),
        ("a.txt", "Река поднялась, люди\n".encode("koi8-r"), "is KOI8-R by its bytes"),
        ("a.txt", "It’s a “test” of a café\n".encode("cp1252"), "Windows-1252.*iconv -f CP1252"),
        ("a.csv", b"text,n\na,1\n", r"is CSV: save it as .*pandas\.read_csv\('[^' ]*a\.csv'\)\.to"),
        ("a.tsv", b"text\tn\na\t1\n", r"tab-separated values: save .*a\.tsv', sep='\\t'\)"),
        ("a.txt", b'[\n  {"text": "a"}\n', "ends within row|ends after row 1 of its JSON array"),
        ("a.txt", b'{\n  "text": "a"\n}\n', "JSON objects that go over several lines"),
        ("a.tar", b"a.txt".ljust(257, b"\0") + b"ustar\0" + bytes(249) + b"text\n" * 99,
         "is a tar archive: unpack it"),
        ("a.json", b'[["a", "b"], ["c"]]', r"is a JSON array of lists, .*jq -c '\.\[\] \|"),
        ("a.json", b'[\n"a",\n"b"]', r"array of strings, .*jq -c '\.\[\] \| \{text: \.\}'"),
        ("a.json", b"[1, 2]", "is a JSON array of numbers"),
        ("a.jsonl", b'"hello"\n"you"\n', "a JSON string on each line: .*jq -c '{text: .}'"),
        ("a.jsonl", b'{"text":"a",}\n{"text":"b",}\n', "a comma before a closing bracket"),
        ("a.jsonl", b'{"text":"a"}\r{"text":"b"}\r', "end in a carriage return alone"),
        ("a.jsonl", b"text,n\na,1\n", "is no JSON: it begins with 'text,n'"),
        ("a.jsonl", b'[{"role": "user"}]\n[{"role": "user"}]\n', "a JSON list on each line"),
        ("a.json", b'{\n "data": [\n', "JSON objects that go over several lines"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", r"by zstd: decompress it: zstd -d .*a\.jsonl"),
        ("a.jsonl", b'{"text": "a"},\n{"text": "b"},\n', "has a comma after each object: remove"),
        ("a.jsonl", b"{'text': 'a', 'n': None}\n" * 3, "holds Python dictionaries, not JSON"),
        ("a.jsonl", b"PK\x03\x04....", "is a zip archive"),
        ("a.arrow", b"ARROW1\0\0", "is an Arrow file: save it as Parquet"),
        ("a.jsonl", bytes(range(256)), "is binary"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-12], "is cut short or damaged, gzip says"),
        ("a.jsonl.gz", gzip.compress(b""), "is empty"),
        ("a.jsonl", gzip.compress(gzip.compress(LINES)), "holds a file within gzip"),
        ("a.jsonl", b"", "is empty"),
    ],
    ids=case_id,
)  # fmt: skip
@pytest.mark.faults("archives, CSV, UTF-16 and other files as data", "named in a sentence")
def test_a_foreign_file_is_named_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.faults("a data file that is missing", "named")
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        find_data(tmp_path / "none.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        find_data(path)


@pytest.mark.parametrize("line", ["{{}}", "{1a}", "{" * 5000])
def test_a_line_that_is_neither_json_nor_python_is_a_bad_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n")
    (row,) = read(path)
    assert isinstance(row, BadRow)
    assert str(row).startswith(f"{path}:1:")
