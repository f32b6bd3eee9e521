"""Reads the rows of a source and converts them to the project's own form. Training, validation,
tokenizer training and all other users of data files read through this module."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minimind.config.spelling import did_you_mean
from minimind.data import dialects
from minimind.data.chat_dialects import CHAT_DIALECTS
from minimind.data.containers import PLAIN_TEXTS
from minimind.data.data_file import DataFile, find_data, read_rows
from minimind.data.dataset_dialects import DATASET_DIALECTS
from minimind.data.dialects import Dialect, find_dialect
from minimind.data.jsonl import BadRow, RowProblem, spell_place
from minimind.data.preference_dialects import PREFERENCE_DIALECTS
from minimind.data.prompt_dialects import PROMPT_DIALECTS
from minimind.data.row_keys import KeyTable
from minimind.data.unpaired_dialects import UNPAIRED_DIALECTS
from minimind.errors import ConfigError, DataError
from minimind.types import Row

logger = logging.getLogger(__name__)

FIRST_ROWS = 20
"""At least one of this many first rows must be in a known form."""
_KEYS_SHOWN = 8
_MOST_REPORTED = 20

TEXT_DIALECT = Dialect(
    name=dialects.OWN,
    title="documents",
    example='{"text": "…"}',
    keys=KeyTable("", {"text": "the document"}),
    matches=lambda data: "text" in data,
    convert=lambda data, unread: data,
)
DIALECTS: dict[str, tuple[Dialect, ...]] = {
    "text": (TEXT_DIALECT,),
    "chat": (*CHAT_DIALECTS, *DATASET_DIALECTS),
    "preference": PREFERENCE_DIALECTS,
    "unpaired": UNPAIRED_DIALECTS,
    "prompt": PROMPT_DIALECTS,
}
"""The dialects of each data format (data/formats.py). A form that includes others comes after
them."""
ALL_KINDS = tuple(DIALECTS)
USED_BY = {
    "text": "--stage pretrain",
    "chat": "--stage sft, lora and distill",
    "preference": "--stage dpo",
    "unpaired": "--stage kto",
    "prompt": "--stage grpo and ppo",
}
FORMAT_NAMES = tuple(
    dict.fromkeys(
        [d.name for kind in DIALECTS.values() for d in kind] + [c.name for c in PLAIN_TEXTS]
    )
)
"""The values of --format."""


class RowReader:
    """Reads the rows of one source, converted to the project's form."""

    def __init__(
        self, file: DataFile, kinds: Sequence[str], format_name: str | None = None
    ) -> None:
        """`kinds` names the data formats that the rows may be of; rows of a format without dialects
        are read unchanged. `format_name`, one of FORMAT_NAMES, names their form; without it the
        first rows decide. Raises DataError where the rows are in no known form, ConfigError for a
        name that does not fit."""
        self.num_rows = 0
        self.unread: Counter[str] = Counter()
        """For each unread key, the number of rows read so far that have it."""
        self._kinds = kinds
        plain = next((c for c in PLAIN_TEXTS if c.name == format_name), None)
        self.file = file.as_plain_text(plain) if plain else file
        if self.file.is_plain_text and "text" not in kinds:
            raise DataError(
                f"{file.path}: is {self.file.describe()}, for {USED_BY['text']} and the tokenizer, "
                f"not for {users_of(kinds)}, which takes conversations"
            )
        self._all = [dialect for kind in kinds for dialect in DIALECTS.get(kind, ())]
        name = None if plain else format_name
        self._named = bool(name)
        self._known = _named(self._all, name, kinds) if name else self._all
        self.dialect, self._example = self._detect() if self._known else (None, None)

    @property
    def key(self) -> list[Any]:
        """Gives all that decides the rows besides the files' bytes, for a cache key."""
        parts: list[Any] = [self.file.kinds] if self.file.kinds else []
        if self.dialect is not None:
            parts += [dialects.VERSION, self.dialect.name, self.dialect.title]
        return parts

    def describe(self) -> str:
        """Describes the rows, such as "ShareGPT (from, value), JSON lines compressed by gzip"."""
        title = ""
        if self.dialect is not None and self.dialect.name != dialects.OWN:
            title = self.dialect.title
            if self.dialect.targets:
                title += f" (targets: {self.dialect.targets})"
        return ", ".join(part for part in (title, self.file.describe()) if part)

    def __iter__(self) -> Iterator[tuple[Row | BadRow, int]]:
        for row, offset in read_rows(self.file):
            yield (self._convert(row) if isinstance(row, Row) else row), offset

    def read(self, label: str) -> Iterator[tuple[Row | BadRow, int]]:
        """Yields the same as iterating, and shows a bar with this label ("" for none) where stderr
        is a terminal."""
        with tqdm(
            total=self.file.text_size,
            unit="B",
            unit_scale=True,
            desc=f"{label} {Path(self.file.path).name}",
            disable=None if label else True,
        ) as bar:
            for row, offset in self:
                bar.update(offset - bar.n)
                yield row, offset

    def _convert(self, row: Row) -> Row | BadRow:
        self.num_rows += 1
        dialect = self.dialect
        if dialect is None:
            return row
        if not dialect.matches(row.data):
            if other := find_dialect(self._all, row.data):
                return BadRow.of(row, self._mixed(dialect, other))
            if dialect.name != dialects.OWN:
                return BadRow.of(row, _missing(dialect, row))
        unread: set[str] = set()
        try:
            data = dialect.read(row.data, unread)
        except RowProblem as problem:
            return BadRow.of(row, str(problem))
        if unread:
            self.unread.update(unread)
        if data is row.data:
            return row
        return Row(data=data, path=row.path, line=row.line, unit=row.unit)

    def _mixed(self, dialect: Dialect, other: Dialect) -> str:
        assert self._example is not None
        first = spell_place(self._example.path, self._example.line, self._example.unit)
        return (
            f"is in the form of {other.title}, and {first} in that of {dialect.title}: the "
            "rows of a file are all in one form, so part the file in two"
        )

    def _detect(self) -> tuple[Dialect | None, Row | None]:
        """Gives the dialect of the first row that is in one, and the row."""
        seen: list[Row] = []
        for row, _ in read_rows(self.file):
            if not isinstance(row, Row):
                continue
            if dialect := find_dialect(self._known, row.data):
                return dialect, row
            seen.append(row)
            if len(seen) == FIRST_ROWS:
                break
        if not seen:
            return None, None
        raise DataError(self._unknown(seen))

    def _unknown(self, seen: Sequence[Row]) -> str:
        first = seen[0]
        place = spell_place(first.path, first.line, first.unit)
        keys = list(first.data)
        found = ", ".join(map(repr, keys[:_KEYS_SHOWN])) + (", …" * (len(keys) > _KEYS_SHOWN))
        if self._named and (other := find_dialect(self._all, first.data)):
            return (
                f"{place}: is in the form of {other.title} (keys found: {found}); "
                f"{self._read_forms()}: leave --format out, or give --format {other.name}"
            )
        for kind in ALL_KINDS:
            if kind not in self._kinds and (other := find_dialect(DIALECTS[kind], first.data)):
                return (
                    f"{place}: is in the form of {other.title}, for {users_of([kind])} and not for "
                    f"{users_of(self._kinds)} (keys found: {found}); {self._read_forms()}"
                )
        for key, value in first.data.items():
            held = value[0] if isinstance(value, list) and value else None
            if isinstance(held, dict) and find_dialect(self._known, held):
                return (
                    f'{place}: its rows stand under "{key}": take them out with jq -c '
                    f"'.{key}[]' {first.path} > {first.path}.jsonl"
                )
        common = [dialect for dialect in self._known if dialect not in DATASET_DIALECTS]
        leading = list(dict.fromkeys(key for dialect in common for key in dialect.keys.used))
        guesses = (did_you_mean(k, leading, '"{}"'.format) for k in keys if k not in leading)
        meant = next(filter(None, guesses), "")
        return (
            f"{place}: is in no form of row for {users_of(self._kinds)} (keys found: "
            f"{found or 'none'}){meant}; {self._read_forms()}"
        )

    def _read_forms(self) -> str:
        if self._named:
            return f"--format {self._known[0].name} is {self._known[0].example}"
        forms = [dialect.example for dialect in self._known]
        return f"a row looks like {' or '.join(forms)}"


def open_rows(
    path: str | Path, kinds: Sequence[str] = ALL_KINDS, format_name: str | None = None
) -> RowReader:
    """Opens a source and finds the form of its rows. Raises DataError and ConfigError."""
    return RowReader(find_data(path), kinds, format_name)


def unread_message(path: str, unread: Mapping[str, int], num_rows: int) -> str:
    """Describes all parts of a source's rows that were not used, in one message."""
    counts = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{name} ({count:,})" for name, count in counts[:_MOST_REPORTED]]
    if more := len(counts) - len(said):
        said.append(f"and {more:,} others")
    return f"{path}: of {num_rows:,} rows some carry what is not read: {', '.join(said)}"


def _missing(dialect: Dialect, row: Row) -> str:
    found = ", ".join(map(repr, list(row.data)[:_KEYS_SHOWN])) or "none"
    return (
        f"is not in the form of {dialect.title}, as the rows before it (keys found: {found}); a "
        f"row looks like {dialect.example}"
    )


def _named(known: Sequence[Dialect], name: str, kinds: Sequence[str]) -> list[Dialect]:
    found = [dialect for dialect in known if dialect.name == name]
    if not found:
        names = list(dict.fromkeys(dialect.name for dialect in known))
        raise ConfigError(
            f"--format {name}: rows for {users_of(kinds)} are not written so"
            f"{did_you_mean(name, names)}; the forms are {', '.join(names)}"
        )
    return found


def users_of(kinds: Sequence[str]) -> str:
    """Says which stages take rows of these formats, such as "--stage sft, lora and distill"."""
    if len(kinds) > 1:
        return "this command"
    return USED_BY.get(kinds[0], f"the format {kinds[0]}")
