"""Recognises how a file holds its rows: as JSON lines, a JSON array, Parquet or plain text, the
texts perhaps compressed. For any other file an error says what it is. The content decides which it
is, except that a file is plain text only by its name."""

from __future__ import annotations

import ast
import bz2
import gzip
import importlib.util
import json
import lzma
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from minimind.data.json_array import read_array
from minimind.data.jsonl import BOM, BadRow, read_lines
from minimind.data.parquet import read_parquet
from minimind.data.plain_text import read_documents, read_paragraphs
from minimind.data.text_encoding import find_encoding
from minimind.errors import DataError
from minimind.types import Row

HEAD_BYTES = 64 << 10
"""The number of bytes by which a file is recognised."""
_LINES = 20
"""The number of whole lines among them that are examined."""
_Refusal = tuple[str, str]
"""The two parts of a refusal: a description of the file, and what the user can do."""
Rows = Iterator[tuple[Row | BadRow, int]]
"""Each row (or a BadRow), with the number of bytes of text read so far."""


@dataclass(frozen=True, slots=True)
class Container:
    """Describes one way in which a file holds rows."""

    name: str
    what: str
    """The name for messages."""
    read: Callable[[BinaryIO, str], Rows]
    """Takes the open file and its name; gives its rows."""
    suffixes: tuple[str, ...]
    """The suffixes of such files, for searching a folder."""
    unit: str = "line"
    """The unit in which messages number the rows."""


JSON_LINES = Container("json lines", "JSON lines", read_lines, (".jsonl", ".ndjson"))
JSON_ARRAY = Container("json array", "a JSON array", read_array, (".json",), "row")
PARQUET = Container("parquet", "Parquet", read_parquet, (".parquet",), "row")
DOCUMENT = Container(
    "document", "plain text, each file a document", read_documents, (".txt", ".text")
)
PARAGRAPHS = Container(
    "paragraphs", "plain text, a document between blank lines", read_paragraphs, ()
)
CONTAINERS = (JSON_LINES, JSON_ARRAY, PARQUET, DOCUMENT, PARAGRAPHS)
PLAIN_TEXTS = (DOCUMENT, PARAGRAPHS)
"""Both give `{"text": …}` rows; --format chooses between them."""

COMPRESSIONS: dict[str, tuple[bytes, Callable[[BinaryIO], BinaryIO]]] = {
    "gzip": (rb"\x1f\x8b", lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file))),
    "bzip2": (rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", lambda file: cast(BinaryIO, bz2.BZ2File(file))),
    "xz": (rb"\xfd7zXZ\x00", lambda file: cast(BinaryIO, lzma.LZMAFile(file))),  # noqa: SIM115
}
"""For each compression, a pattern of a file's first bytes, and the function that decompresses
it."""
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, OSError)
"""The errors, besides zlib.error, that reading a damaged file raises."""

_JSON = "JSON lines, a JSON array, Parquet, or plain text under a name that ends in .txt"
FOREIGN_BY_BYTES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "decompress it: zstd -d FILE"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "decompress it: lz4 -d FILE"),
    (b"PK\x03\x04", "is a zip archive (or .xlsx, .docx, …)", f"unpack it; MiniMind reads {_JSON}"),
    (b"Rar!", "is a rar archive", f"unpack it; MiniMind reads {_JSON}"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", f"unpack it; MiniMind reads {_JSON}"),
    (b"ARROW1", "is an Arrow file", 'save it as Parquet: datasets.Dataset.from_file("FILE").'
     'to_parquet("FILE.parquet")'),
    (b"\xff\xff\xff\xff", "is an Arrow stream", 'save it as Parquet: datasets.Dataset.from_file('
     '"FILE").to_parquet("FILE.parquet")'),
    (b"SQLite format 3", "is a SQLite database", "export its rows as JSON lines"),
    (b"%PDF", "is a PDF", "extract its text: pdftotext FILE FILE.txt"),
    (b"\x89HDF", "is an HDF5 file", "export its rows as JSON lines"),
    (b"\x93NUMPY", "is a NumPy array", "give the text: MiniMind makes the tokens itself"),
    (b"Obj\x01", "is an Avro file", "export its rows as JSON lines or Parquet"),
    (b"ORC", "is an ORC file", "export its rows as JSON lines or Parquet"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data", "fetch it: git lfs pull"),
    (b"<!DOCTYPE html", "is a web page", "download the file itself"),
    (b"<html", "is a web page", "download the file itself"),
    (b"---\n", "is YAML", f"MiniMind reads {_JSON}"),
)  # fmt: skip
_WORDS = (b"Rar!", b"ORC", b"<!DOCTYPE html", b"<html", b"---\n")
"""Byte patterns that may also begin a plain text."""
_ROWS = re.compile(rb"(?:\[\s*)?(?:\[\s*)?\{\s*\"[^\"\n]*\"\s*:|\[\s*\]")
"""The beginning of JSON that spans several lines or is an array."""
_ELEMENTS = ((rb"\[", "lists", "{conversations: .}"), (rb'"', "strings", "{text: .}"),
             (rb"-?\d", "numbers", "{text: tostring}"))  # fmt: skip
"""For the beginning of an array: what its elements are, and how jq writes one as a row."""
FOREIGN_BY_NAME = {".csv": "CSV", ".tsv": "tab-separated values", ".xlsx": "an Excel file",
          ".yaml": "YAML", ".yml": "YAML", ".xml": "XML", ".pkl": "a Python pickle"}  # fmt: skip


def find_compression(head: bytes) -> str:
    """Gives the name of a file's compression by its first bytes; "" for none."""
    found = (name for name, (magic, _) in COMPRESSIONS.items() if re.match(magic, head))
    return next(found, "")


def find_container(path: str, head: bytes) -> Container:
    """Gives a file's container by its first bytes, decompressed. Raises DataError, with what to do,
    for a file that cannot be read."""
    if head.startswith(b"PAR1"):
        if importlib.util.find_spec("pyarrow") is None:
            _refuse(path, "is Parquet, which needs pyarrow", "pip install 'minimind[parquet]'")
        return PARQUET
    if head[257:262] == b"ustar":
        _refuse(path, "is a tar archive", "unpack it (tar -xf FILE) and give its files")
    suffix = suffix_of(path)
    for magic, what, todo in FOREIGN_BY_BYTES:
        if head.startswith(magic) and not (suffix in DOCUMENT.suffixes and magic in _WORDS):
            _refuse(path, what, todo)
    _check_encoding(path, head)
    text = head.removeprefix(BOM).lstrip()
    lines = [line.strip() for line in text.splitlines()[:_LINES] if line.strip()]
    if suffix in DOCUMENT.suffixes and not _ROWS.match(text) and not (
        text.startswith(b"{") and _parses(lines[0])
    ):  # fmt: skip
        return DOCUMENT
    if b"\r" in text and b"\n" not in text and len(lines) > 1:
        _refuse(path, "has lines that end in a carriage return alone",
                "convert them: tr '\\r' '\\n' < FILE > FILE.jsonl")  # fmt: skip
    mistake = None
    if text.startswith(b"["):
        mistake = _mistake_of_array(text, lines, is_cut=len(head) == HEAD_BYTES)
    elif lines:
        mistake = _mistake_of_lines(lines) or _find_other_text(lines, suffix)
    if mistake:
        _refuse(path, *mistake)
    return JSON_ARRAY if text.startswith(b"[") else JSON_LINES


def _mistake_of_array(text: bytes, lines: list[bytes], *, is_cut: bool) -> _Refusal | None:
    """Finds what an array of JSON holds in place of objects."""
    if _is_lines_of_lists(lines, is_cut):
        return "holds a JSON list on each line", (
            'write each as an object, such as {"conversations": […]}'
        )
    for begin, what, row in _ELEMENTS:
        if re.match(rb"\[\s*" + begin, text):
            todo = f"write each as one: jq -c '.[] | {row}' FILE > FILE.jsonl"
            return f"is a JSON array of {what}, not of objects", todo
    return None


def _mistake_of_lines(lines: list[bytes]) -> _Refusal | None:
    """Finds a usual mistake in lines that were meant as rows of JSON."""
    if all(line.startswith(b'"') for line in lines) and _parses(lines[0]):
        return "holds a JSON string on each line", (
            "write each as an object: jq -c '{text: .}' FILE > FILE.jsonl"
        )
    if lines[0] == b"{":
        return "holds JSON objects that go over several lines", (
            "write each on a line of its own: jq -c . FILE > FILE.jsonl, or the rows of a key of "
            "one: jq -c '.KEY[]'"
        )
    if any(_parses(line) for line in lines):
        return None
    if _parses(lines[0].rstrip(b", ")):
        return "has a comma after each object", "remove them: sed 's/, *$//' FILE > FILE.jsonl"
    if _parses(re.sub(rb",\s*([}\]])", rb"\1", lines[0])):
        return "has a comma before a closing bracket, which JSON does not allow", (
            "remove them: sed -E 's/, *([]}])/\\1/g' FILE > FILE.jsonl"
        )
    if _is_python(lines[0]):
        return "holds Python dictionaries, not JSON", (
            "write them with json.dumps(row, ensure_ascii=False)"
        )
    return None


def _find_other_text(lines: list[bytes], suffix: str) -> _Refusal | None:
    """Finds the kind of a text that is no JSON, by its name, or by its lines."""
    what, todo = FOREIGN_BY_NAME.get(suffix), f"MiniMind reads {_JSON}"
    if what is None:
        if any(line.startswith((b"{", b"[")) for line in lines):
            return None
        begins = lines[0][:40].decode("utf-8", "replace")
        return f"is no JSON: it begins with {begins!r}", todo
    if suffix in (".csv", ".tsv"):
        separator = ", sep='\\t'" if suffix == ".tsv" else ""
        todo = f"save it as JSON lines or Parquet: pandas.read_csv('FILE'{separator}).to_json("
        todo += "'FILE.jsonl', orient='records', lines=True, force_ascii=False)"
    return f"is {what}", todo


def suffix_of(path: str) -> str:
    """Gives the suffix of a file's name in lower case, without that of its compression."""
    name = path.lower()
    for suffix in _COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def _refuse(path: str, what: str, todo: str) -> NoReturn:
    raise DataError(f"{path}: {what}: {todo.replace('FILE', path)}")


def _check_encoding(path: str, head: bytes) -> None:
    found = find_encoding(head, is_cut=len(head) == HEAD_BYTES)
    if found is None:
        if b"\0" in head[:1024]:
            _refuse(path, "is binary", f"MiniMind reads {_JSON}")
        return
    by = "" if found.name.startswith("UTF") else " by its bytes"
    what = f"is {found.name}{by}, and only UTF-8 is read"
    if found.code in ("ENCODING", "CP1252"):
        what = "is not UTF-8 in any line that has other characters than ASCII"
        what += f", but {found.name} by its bytes" if found.name else ""
    find_out = "" if found.name else "find out its encoding and "
    _refuse(path, what, f"{find_out}convert it: iconv -f {found.code} -t UTF-8 FILE > FILE.utf8")


def _is_lines_of_lists(lines: list[bytes], is_cut: bool) -> bool:
    """Tells whether each line is a complete list. An array of rows is one list, on one line or over
    several."""
    whole = lines[:-1] if is_cut else lines
    return len(whole) > 1 and all(line.startswith(b"[") and _parses(line) for line in whole[:2])


def _is_python(line: bytes) -> bool:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        try:
            return isinstance(ast.literal_eval(line.decode("utf-8", "replace")), dict)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return False


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
