"""Loads JSON files that anyone may have written: of bounded size and depth, and from regular files
alone."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from minimind.errors import ConfigError

MAX_DEPTH = 100
"""The deepest nesting of objects and lists, since much code that reads them is recursive."""
MAX_JSON_BYTES = 256 << 20
"""The largest file: several times the tokenizer.json of the largest vocabularies."""
TOO_DEEP = f"it is nested too deep: {MAX_DEPTH} levels are the most"


def load_json(path: str | Path, **options: Any) -> Any:
    """Loads a JSON file; `options` are those of `json.loads`. Raises OSError where the file cannot
    be read or is no regular file, and ValueError where it is no JSON, too large or nested too
    deep."""
    check_regular(path)
    size = os.path.getsize(path)
    if size > MAX_JSON_BYTES:
        raise ValueError(f"it has {size:,} bytes; {MAX_JSON_BYTES:,} are the most")
    return parse_json(Path(path).read_text(encoding="utf-8"), **options)


def read_json_fields(path: Path, **options: Any) -> dict[str, Any]:
    """Reads a JSON file of fields, without checking their names; `options` are those of
    `json.loads`. Raises ConfigError."""
    try:
        values = load_json(path, **options)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold one JSON object, not a {type(values).__name__}")
    return values


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON, as `object_pairs_hook`. Raises ValueError for a key that occurs
    twice; `json.loads` would silently take its last value."""
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f'the key "{twice}" stands twice in one object')
    return data


def parse_json(text: str, **options: Any) -> Any:
    """Parses JSON as `json.loads` does. Raises ValueError, also where it is nested too deep."""
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    check_depth(text, value)
    return value


def check_depth(text: str, value: Any) -> None:
    """Raises ValueError where `value`, parsed from `text`, is nested too deep. The value of a text
    with too few brackets for that is not walked through."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
    if level:
        raise ValueError(TOO_DEEP)


def check_regular(path: str | Path) -> None:
    """Raises OSError for a path that is missing, or that names a pipe, a device or a socket, from
    which reading may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))
