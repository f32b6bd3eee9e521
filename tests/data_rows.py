"""Holds the same rows as JSON lines and as an array, and reads rows and data files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.data.data_file import find_data, read_rows
from minimind.data.jsonl import BadRow
from minimind.data.token_cache import TokenCache
from minimind.types import Row

MakeCache = Callable[..., TokenCache]
"""The fixture `cache_of`: cache_of(format, *rows, name="rows.jsonl") gives the rows' tokens."""
ROWS = [{"text": "第一天 é", "n": 1}, {"text": 'b "]}', "n": None}, {"text": "c\n\nd", "n": [{}]}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=2).encode()


def case_id(value: object) -> str:
    """The same in every process, which compressed bytes are not."""
    return value if isinstance(value, str) else type(value).__name__


def read(path: Path) -> list[Row | BadRow]:
    return [row for row, _ in read_rows(find_data(path))]


def as_rows(*data: dict[str, Any]) -> list[Row]:
    """The rows of a file a.jsonl."""
    return [Row(data=one, path="a.jsonl", line=line) for line, one in enumerate(data, start=1)]
