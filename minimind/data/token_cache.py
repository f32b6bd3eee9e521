"""Keeps a data source's tokens on disk, memory-mapped, under a key of all that decides them.

A cache folder holds `tokens.bin` (uint16, or uint32 for large vocabularies), `offsets.bin` (int64
[documents + 1], where each document starts), `lines.bin` (int64 [documents]), `targets.bin` (one
byte per token, only for formats where not every token is a target), `meta_NAME.bin` for each column
of the format (one number per unit; or UTF-8 text, with `meta_NAME_offsets.bin`) and `meta.json`.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.data_file import DataFile, scan_data
from minimind.data.formats import TEXT_COLUMN, Format
from minimind.data.jsonl import BadRow, OnBadRow, bad_rows_error, bad_rows_message, spell_place
from minimind.data.rows import RowReader, unread_message
from minimind.data.text_format import TEXT
from minimind.data.token_writer import META_FILE, write_tokens
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError, DataError
from minimind.runtime.cache_folder import CACHE_ADVICE, default_cache_dir, locked, remove_stale

logger = logging.getLogger(__name__)

LAYOUT_VERSION = 2


class TokenCache:
    """Gives the documents of one source as tokens."""

    def __init__(self, folder: Path, file: DataFile, format: Format, meta: dict[str, Any]) -> None:
        """Maps the files of a complete cache folder. `file` is the source, for messages."""
        self.folder = folder
        self.path = file.path
        self.key: str = meta["key"]
        self.format = format
        self.num_documents: int = meta["num_documents"]
        """The number of documents. Each `format.documents_per_unit` successive ones come from one
        row."""
        self.num_tokens: int = meta["num_tokens"]
        self.num_skipped: int = meta["num_skipped"]
        self._members = file.members
        self._first_documents: list[int] = meta["first_documents"]
        self.skipped = [
            BadRow(self._members[at].path, line, why, self._members[at].container.unit)
            for at, line, why in meta["skipped"]
        ]
        """The rows that were left out; of more than 10,000 only the first ones."""
        self.num_rows: int = meta["num_rows"]
        self.unread: dict[str, int] = meta["unread"]
        """For each part of a row that became no token (data/row_keys.py), the number of rows that
        have it."""
        self._tokens = _map(folder / "tokens.bin", meta["dtype"], self.num_tokens)
        self._offsets = _map(folder / "offsets.bin", "int64", self.num_documents + 1)
        self._lines = _map(folder / "lines.bin", "int64", self.num_documents)
        self._targets = None
        if not self.format.all_targets:
            self._targets = _map(folder / "targets.bin", "bool", self.num_tokens)
        num_units = self.num_documents // self.format.documents_per_unit
        self._columns: dict[str, np.ndarray] = {}
        self._text_offsets: dict[str, np.ndarray] = {}
        for name, kind in self.format.columns.items():
            path_of, is_text = folder / f"meta_{name}.bin", kind == TEXT_COLUMN
            length = meta["text_columns"][name] if is_text else num_units
            self._columns[name] = _map(path_of, "uint8" if is_text else kind, length)
            if is_text:
                ends = folder / f"meta_{name}_offsets.bin"
                self._text_offsets[name] = _map(ends, "int64", num_units + 1)

    @property
    def lengths(self) -> np.ndarray:
        """Gives the number of tokens of each document, int64 [documents]."""
        return np.diff(self._offsets)

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Gives the tokens `start` to `stop` of a document, as a view of the mapped file."""
        return self._tokens[self._range(document, start, stop)]

    def is_target(
        self, document: int, start: int = 0, stop: int | None = None
    ) -> np.ndarray | None:
        """Tells which of the tokens that `tokens` gives are targets, as bool; None where all
        are."""
        return None if self._targets is None else self._targets[self._range(document, start, stop)]

    def meta(self, unit: int) -> dict[str, Any]:
        """Gives the other values of a unit's row, by the names of the format's columns."""
        return {name: self._value(name, unit) for name in self._columns}

    def _value(self, name: str, unit: int) -> Any:
        column, offsets = self._columns[name], self._text_offsets.get(name)
        if offsets is None:
            return column[unit]
        return column[offsets[unit] : offsets[unit + 1]].tobytes().decode()

    def source(self, document: int) -> str:
        """Gives `file:line` of a document."""
        member = self._members[bisect.bisect_right(self._first_documents, document) - 1]
        return spell_place(member.path, int(self._lines[document]), member.container.unit)

    def _range(self, document: int, start: int, stop: int | None) -> slice:
        first = int(self._offsets[document])
        last = int(self._offsets[document + 1])
        return slice(first + start, last if stop is None else min(first + stop, last))


def build_token_cache(
    path: str | Path,
    tokenizer: Tokenizer,
    format: Format = TEXT,
    cache_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: bool = False,
    format_name: str | None = None,
) -> TokenCache:
    """Tokenises a data source on all cores, or opens the cache of an earlier call.

    Memory use does not grow with the source. `progress` shows a bar where stderr is a terminal.
    `format_name` names the form of the rows (data/rows.py); without it the first rows decide.
    Raises DataError where the source cannot be used, where the disk is full, and with "stop" where
    any row is bad: the message lists them. With "skip" bad rows are left out and logged. Skipped
    rows and unread parts are logged again when a cache is reused.
    """
    if on_bad_row not in ("stop", "skip"):
        raise ConfigError(f"on_bad_row is {on_bad_row!r}; it must be stop or skip")
    reader = RowReader(scan_data(path), (format.name,), format_name)
    key = _key(reader, tokenizer, format)
    parent = Path(cache_dir or default_cache_dir()) / "tokens"
    folder = parent / key
    cache = _open(folder, reader.file, format)
    if cache is None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent / f"{key}.lock") as has_lock:
                cache = _open(folder, reader.file, format)
                if cache is None:
                    if has_lock:
                        remove_stale(parent, held=key)
                    write_tokens(reader, folder, key, tokenizer, format, on_bad_row, progress)
                    cache = _open(folder, reader.file, format)
        except OSError as error:
            raise DataError(
                f"{parent}: the token cache cannot be written: {error}; {CACHE_ADVICE}"
            ) from None
        if cache is None:
            raise DataError(f"{folder}: the token cache is incomplete; remove the folder")
    if described := reader.describe():
        logger.info("%s: %s", cache.path, described)
    _report_bad_rows(cache, on_bad_row)
    if cache.unread:
        logger.warning("%s", unread_message(cache.path, cache.unread, cache.num_rows))
    return cache


def _report_bad_rows(cache: TokenCache, on_bad_row: OnBadRow) -> None:
    if not cache.num_skipped:
        return
    if on_bad_row == "stop":
        raise bad_rows_error(cache.skipped, cache.num_skipped)
    message = bad_rows_message(cache.skipped, cache.num_skipped)
    logger.warning("%s skipped, %d used", message, cache.num_documents)


def _key(reader: RowReader, tokenizer: Tokenizer, format: Format) -> str:
    """Gives the cache key. on_bad_row is not part of it, since the cache records the skipped
    rows."""
    parts = [LAYOUT_VERSION, reader.file.digest, reader.key]
    parts += [tokenizer.fingerprint, format.name, format.version]
    if format.columns:
        parts.append(sorted(format.columns.items()))
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _open(folder: Path, file: DataFile, format: Format) -> TokenCache | None:
    """Opens the cache in `folder`; None where it is missing or incomplete."""
    try:
        meta = json.loads((folder / META_FILE).read_text("utf-8"))
        return TokenCache(folder, file, format, meta)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        logger.warning("the token cache %s cannot be used and is built again: %s", folder, error)
        return None


def _map(path: Path, dtype: str, length: int) -> np.ndarray:
    size = path.stat().st_size
    if size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} has {size} bytes, not {length} × {dtype}")
    if not length:
        return np.empty(0, dtype=dtype)  # nothing cannot be mapped
    # A plain array: slicing np.memmap itself takes microseconds each time.
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,)).view(np.ndarray)
