"""Finds and reads a source of rows on disk: a file, a folder of files, or a pattern of names. Rows
are streamed; neither files nor an index of them are held in memory."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from minimind.config.json_file import check_regular
from minimind.config.spelling import did_you_mean_file
from minimind.data.containers import (
    BROKEN,
    COMPRESSIONS,
    CONTAINERS,
    HEAD_BYTES,
    PARQUET,
    PLAIN_TEXTS,
    Container,
    find_compression,
    find_container,
    suffix_of,
)
from minimind.data.jsonl import BadRow
from minimind.errors import ConfigError, DataError
from minimind.types import Row

SUFFIXES = tuple(suffix for container in CONTAINERS for suffix in container.suffixes)
_HASH_CHUNK_BYTES = 4 << 20
_SPLIT = re.compile(r"(?:^|[-_./])(train|test|val|valid|validation|dev|eval)(?=[-_./])", re.I)


@dataclass(frozen=True, slots=True)
class Member:
    """Describes one file of a source."""

    path: str
    container: Container
    compression: str
    """A key of COMPRESSIONS, or ""."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """Describes a source as it was when its files were examined."""

    path: str
    """The path that the user gave."""
    members: tuple[Member, ...]
    """The files in the order of reading: several only for a folder or pattern."""
    size: int
    """The bytes of all files on disk."""
    digest: str
    """The blake2b hash of all bytes; "" until they have been read. Cache keys contain it and
    `kinds`."""
    states: tuple[tuple[int, ...], ...] = ()
    """Describes each file before its bytes were read: inode, size, time of change. If these change
    later, the digest may no longer fit the bytes."""
    others: tuple[str, ...] = ()
    """The names of a folder's files that are not read."""

    @property
    def kinds(self) -> list[str]:
        """Gives the names of the containers other than JSON lines."""
        return sorted({member.container.name for member in self.members} - {"json lines"})

    @property
    def text_size(self) -> int | None:
        """Gives the bytes of text in the source; None where only reading would tell."""
        unknown = any(m.compression or m.container == PARQUET for m in self.members)
        return None if unknown else self.size

    @property
    def is_plain_text(self) -> bool:
        return any(member.container in PLAIN_TEXTS for member in self.members)

    def as_plain_text(self, container: Container) -> DataFile:
        """Gives the same plain-text files, split into documents by `container`. Raises ConfigError
        where the source is not plain text."""
        if other := next((m for m in self.members if m.container not in PLAIN_TEXTS), None):
            raise ConfigError(
                f"--format {container.name} is about plain text, and {other.path} is "
                f"{other.container.what}: leave --format out"
            )
        members = tuple(replace(member, container=container) for member in self.members)
        return replace(self, members=members)

    def describe(self) -> str:
        """Describes the source, such as "3 files, JSON lines compressed by gzip (not read:
        README.md)"; "" for one file of JSON lines."""
        kinds = [
            f"{container.what}{f' compressed by {compression}' if compression else ''}"
            for container, compression in dict.fromkeys(
                (member.container, member.compression) for member in self.members
            )
        ]
        some = ", ".join(self.others[:5]) + (", …" * (len(self.others) > 5))
        others = f" (not read: {some})" if some else ""
        if len(self.members) > 1 or others:
            return f"{len(self.members)} files, {' and '.join(kinds)}{others}"
        return "" if kinds == ["JSON lines"] else kinds[0]


def find_data(path: str | Path) -> DataFile:
    """Examines the beginning of each file of a source, without computing the hash. Raises DataError
    where the source is missing, unreadable, empty or in no format that has rows."""
    names, others = _find_members(str(path))
    members = tuple(map(_recognise, names))
    size = sum(os.path.getsize(name) for name in names)
    return DataFile(str(path), members, size, "", others=tuple(Path(name).name for name in others))


def scan_data(path: str | Path) -> DataFile:
    """Describes a source as `find_data` does, and reads all of it to compute its hash."""
    found = find_data(path)
    states = tuple(_state(member.path) for member in found.members)
    digest = hashlib.blake2b(digest_size=20)
    total = 0
    for member in found.members:
        size = 0
        with _open(member.path) as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        if len(found.members) > 1:
            digest.update(f"\0{size}\0".encode())
        total += size
    return replace(found, size=total, digest=digest.hexdigest(), states=states)


def check_unchanged(file: DataFile) -> None:
    """Raises DataError where a file of the source is not as it was when its hash was computed."""
    for member, state in zip(file.members, file.states, strict=True):
        if _state(member.path) != state:
            raise DataError(f"{member.path}: changed while it was read; start again")


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def read_rows(file: DataFile) -> Iterator[tuple[Row | BadRow, int]]:
    """Yields each row, or a BadRow, with the number of bytes of text read so far (for progress).
    Raises DataError where a file breaks off."""
    done = offset = 0
    for member in file.members:
        with (
            _open(member.path) as raw,
            _decompressed(raw, member.path, member.compression) as stream,
        ):
            for row, offset in member.container.read(stream, member.path):
                yield row, done + offset
        done += offset


def _open(path: str) -> BinaryIO:
    """Opens a data file for reading bytes. Raises DataError."""
    try:
        check_regular(path)
        return open(path, "rb")
    except FileNotFoundError:
        guess = did_you_mean_file(Path(path))
        raise DataError(f"{path}: no such file (in the folder {Path.cwd()}){guess}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; give a file in it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _find_members(path: str) -> tuple[list[str], list[str]]:
    """Lists, sorted by name, the files of a folder and its subfolders, or those that match a glob
    pattern; a single file lists itself. Lists apart the files of a folder that are no data. Raises
    DataError where there are none, and for a folder that holds several splits."""
    place = Path(path)
    if place.is_dir():
        found = sorted(str(entry) for entry in place.rglob("*") if entry.is_file())
        usable = [name for name in found if _is_data(name)]
        if not usable:
            raise DataError(f"{path}: is a folder without a file of {', '.join(SUFFIXES)}")
        _check_splits(path, usable)
        return usable, sorted({*found} - {*usable})
    if not place.exists() and glob.has_magic(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{path}: no file has such a name (in the folder {Path.cwd()})")
        return found, []
    return [path], []


def _is_data(name: str) -> bool:
    return suffix_of(name) in SUFFIXES and not Path(name).name.startswith(".")


def _check_splits(path: str, names: Sequence[str]) -> None:
    splits = {match[1].lower() for name in names if (match := _SPLIT.search(name[len(path) :]))}
    if len(splits) > 1:
        raise DataError(
            f"{path}: holds several splits ({', '.join(sorted(splits))}), of which one is for "
            f"training: name its files, as in --data '{path.rstrip('/')}/train-*'"
        )


def _recognise(path: str) -> Member:
    with _open(path) as raw:
        head = raw.read(HEAD_BYTES)
        if compression := find_compression(head):
            raw.seek(0)
            with _decompressed(raw, path, compression) as stream:
                head = stream.read(HEAD_BYTES)
            if head.startswith(b"PAR1") or find_compression(head):
                raise DataError(f"{path}: holds a file within {compression}: decompress it")
    if not head:
        raise DataError(f"{path}: is empty; it needs one JSON object a line")
    return Member(path, find_container(path, head), compression)


@contextmanager
def _decompressed(file: BinaryIO, path: str, compression: str) -> Iterator[BinaryIO]:
    """Decompresses a file while it is read. Raises DataError where it is damaged."""
    if not compression:
        yield file
        return
    try:
        yield COMPRESSIONS[compression][1](file)
    except (*BROKEN, zlib.error) as error:
        raise DataError(f"{path}: is cut short or damaged, {compression} says: {error}") from None
