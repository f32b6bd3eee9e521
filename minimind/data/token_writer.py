"""Writes a token cache: one pass over a data source, in batches, into a folder of flat arrays."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.data_file import check_unchanged
from minimind.data.formats import TEXT_COLUMN, Format
from minimind.data.jsonl import BadRow, OnBadRow, RowProblem, bad_rows_error, bad_rows_message
from minimind.data.rows import RowReader
from minimind.data.text_format import check_characters
from minimind.data.tokenizer import Tokenizer
from minimind.errors import DataError
from minimind.runtime.cache_folder import CACHE_ADVICE, new_folder
from minimind.types import PairSample, Row, Sample

META_FILE = "meta.json"
MAX_RECORDED = 10_000
"""The most bad rows whose line and reason are kept; others are only counted."""

_BATCH_BYTES = 1 << 20
"""The bytes of text tokenised at a time: enough to keep all cores busy, and about 100 MB of
memory."""
_BATCH_ROWS = 8192

_Read = Sample | PairSample | BadRow


def write_tokens(
    reader: RowReader,
    folder: Path,
    key: str,
    tokenizer: Tokenizer,
    format: Format,
    on_bad_row: OnBadRow,
    progress: bool,
) -> None:
    """Tokenises the rows of `reader` into `folder`, which is complete or absent afterwards.

    All rows are read before bad ones are reported, so that one run names them all; with "stop" a
    bad row leaves nothing behind. Raises DataError for bad rows, a source without usable rows, a
    source that changes while it is read, and a full disk.
    """
    file = reader.file
    writer = _Writer(reader, tokenizer, format)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with new_folder(folder) as temporary:
            with ExitStack() as stack:
                writer.open_files(temporary, stack)
                for batch, samples in _encoded(_batches(reader, progress), format, tokenizer):
                    writer.add(batch, samples)
            writer.check_usable(on_bad_row)
            check_unchanged(file)
            meta = json.dumps({"key": key, **writer.meta()})
            (temporary / META_FILE).write_text(meta, encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{folder.parent}: the disk is full: the token cache of {file.path} needs about "
            f"{writer.bytes_needed():,} bytes there, {_free_bytes(folder.parent):,} are free; "
            f"{CACHE_ADVICE}"
        ) from None


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: list[Row]
    bad: list[BadRow]
    end: int
    """The bytes of text read up to the end of this batch."""


class _Writer:
    """Appends samples to the arrays, and records bad rows."""

    def __init__(self, reader: RowReader, tokenizer: Tokenizer, format: Format) -> None:
        self._reader, self._file = reader, reader.file
        self._format = format
        self._places = {member.path: at for at, member in enumerate(reader.file.members)}
        self._first_documents: list[int] = []
        self._unread: Counter[str] = Counter()
        self._dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self._bad: list[BadRow] = []
        self._num_bad = 0
        self._num_documents = 0
        self._num_tokens = 0
        self._read_bytes = 0

    def open_files(self, folder: Path, stack: ExitStack) -> None:
        names = ["tokens", "offsets", "lines"] + ["targets"] * (not self._format.all_targets)
        texts = [name for name, kind in self._format.columns.items() if kind == TEXT_COLUMN]
        names += [f"meta_{name}" for name in self._format.columns]
        names += [f"meta_{name}_offsets" for name in texts]
        paths = {name: folder / f"{name}.bin" for name in names}
        self._files = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
        for name in ("offsets", *(f"meta_{name}_offsets" for name in texts)):
            self._write(name, np.zeros(1, dtype=np.int64))
        self._text_ends = dict.fromkeys(texts, 0)

    def add(self, batch: _Batch, samples: list[_Read]) -> None:
        self._read_bytes = batch.end
        bad = batch.bad
        good: list[Sample] = []
        metas: list[Mapping[str, Any]] = []
        lines: list[int] = []
        for row, sample in zip(batch.rows, samples, strict=True):
            if isinstance(sample, BadRow):
                bad.append(sample)
                continue
            try:
                _check_columns(self._format.columns, sample.meta)
            except RowProblem as problem:
                bad.append(BadRow.of(row, str(problem)))
                continue
            while len(self._first_documents) <= self._places[row.path]:
                self._first_documents.append(self._num_documents + len(good))
            good += sample.documents
            metas.append(sample.meta)
            lines += [row.line] * len(sample.documents)
            self._unread.update(sample.unread)
        bad.sort(key=lambda row: (self._places[row.path], row.line))
        self._num_bad += len(bad)
        self._bad += bad[: MAX_RECORDED - len(self._bad)]
        if not good:
            return
        ends = self._num_tokens + np.cumsum([len(sample.ids) for sample in good])
        self._write("tokens", np.concatenate([s.ids for s in good]).astype(self._dtype))
        self._write("offsets", ends.astype(np.int64))
        self._write("lines", np.array(lines, dtype=np.int64))
        if not self._format.all_targets:
            self._write("targets", np.concatenate([s.is_target for s in good]))
        for name, kind in self._format.columns.items():
            self._write_column(name, kind, [meta[name] for meta in metas])
        self._num_documents += len(good)
        self._num_tokens = int(ends[-1])

    def _write_column(self, name: str, kind: str, values: list[Any]) -> None:
        if kind != TEXT_COLUMN:
            self._write(f"meta_{name}", np.array(values, dtype=kind))
            return
        texts = [value.encode() for value in values]
        ends = self._text_ends[name] + np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._files[f"meta_{name}"].write(b"".join(texts))
        self._write(f"meta_{name}_offsets", ends)
        self._text_ends[name] = int(ends[-1])

    def check_usable(self, on_bad_row: OnBadRow) -> None:
        if self._num_bad and (on_bad_row == "stop" or not self._num_documents):
            if self._num_documents:
                raise bad_rows_error(self._bad, self._num_bad)
            message = bad_rows_message(self._bad, self._num_bad)
            raise DataError(f"{message}, and no good one: {self._file.path} cannot be used")
        if not self._num_documents:
            what = "no rows" if self._file.kinds else "only blank lines"
            raise DataError(f"{self._file.path}: holds {what}")

    def meta(self) -> dict[str, object]:
        return {
            "dtype": self._dtype,
            "text_columns": self._text_ends,
            "num_documents": self._num_documents,
            "num_tokens": self._num_tokens,
            "first_documents": self._first_documents,
            "num_rows": self._reader.num_rows,
            "unread": dict(self._reader.unread + self._unread),
            "num_skipped": self._num_bad,
            "skipped": [[self._places[row.path], row.line, row.reason] for row in self._bad],
        }

    def bytes_needed(self) -> int:
        """Estimates the size of the whole cache from the part written so far."""
        itemsize = np.dtype(self._dtype).itemsize + (not self._format.all_targets)
        written = self._num_tokens * itemsize + self._num_documents * 16
        if not written:
            return self._file.size
        return round(written * max(1.0, self._file.size / self._read_bytes))

    def _write(self, name: str, array: np.ndarray) -> None:
        # Not by ndarray.tofile, whose errors do not say that the disk is full.
        self._files[name].write(array.tobytes())


def _encoded(
    batches: Iterator[_Batch], format: Format, tokenizer: Tokenizer
) -> Iterator[tuple[_Batch, list[_Read]]]:
    """Yields each batch with its samples, in order. While one batch is encoded, on all cores and
    without Python's lock, the main thread parses the next batch and writes the previous one."""
    pending: deque[tuple[_Batch, Future[list[_Read]]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in batches:
            pending.append((batch, pool.submit(format.read, batch.rows, tokenizer)))
            if len(pending) > 1:
                done, samples = pending.popleft()
                yield done, samples.result()
        for done, samples in pending:
            yield done, samples.result()


def _batches(reader: RowReader, progress: bool) -> Iterator[_Batch]:
    rows: list[Row] = []
    bad: list[BadRow] = []
    done = offset = 0
    for row, offset in reader.read("tokenising" if progress else ""):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append(row)
        if offset - done >= _BATCH_BYTES or len(rows) + len(bad) >= _BATCH_ROWS:
            yield _Batch(rows, bad, offset)
            rows, bad, done = [], [], offset
    yield _Batch(rows, bad, reader.file.text_size or offset)


def _check_columns(columns: Mapping[str, str], meta: Mapping[str, Any]) -> None:
    """Raises RowProblem for a value that does not fit its column and would be stored as another
    value."""
    for name, kind in columns.items():
        value = meta[name]
        if kind == TEXT_COLUMN:
            fits = isinstance(value, str)
            if fits:
                check_characters(value, f'"{name}"')
        elif np.issubdtype(kind, np.bool_):
            fits = isinstance(value, bool)
        elif np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            fits = type(value) is int and limits.min <= value <= limits.max
        else:
            fits = type(value) in (int, float) and abs(value) <= float(np.finfo(kind).max)
        if not fits:
            raise RowProblem(f'"{name}" is {json.dumps(value)[:40]}; it must be {kind}')


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
