"""Computes digests of files: those of a checkpoint reveal a changed bit, and those of weights
identify the model that an adapter belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from minimind.config.json_file import check_regular
from minimind.errors import CheckpointError

DIGESTS = "xxh3_128"
"""The field of meta.json that holds them, named after the algorithm."""


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Reads files and gives each one's digest by its name. Raises OSError."""
    return {name: _digest(folder / name) for name in names}


def check_digests(folder: Path, meta: Mapping[str, Any]) -> None:
    """Reads every file that meta.json has a digest of. Raises CheckpointError for a file whose
    content has changed since it was written. Checkpoints of earlier versions have no digests."""
    expected_by_name = meta.get(DIGESTS) or {}
    if not isinstance(expected_by_name, Mapping):
        raise CheckpointError(f"{folder}: its meta.json holds no digests under {DIGESTS}")
    for name, expected in expected_by_name.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder}: its meta.json names {name}, which is no file of it")
        try:
            check_regular(folder / name)
            found = _digest(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}") from None
        except ValueError as error:  # a lone surrogate, or a zero byte
            raise CheckpointError(f"{folder}: {name!a} is no name of a file: {error}") from None
        if found != expected:
            raise CheckpointError(
                f"{folder / name}: damaged: its size is right, but its content is not what was "
                "written (its digest differs from that in meta.json)"
            )


def hash_files(paths: Iterable[Path]) -> str:
    """Gives a hash of the files' bytes, not of their names. Raises CheckpointError where one cannot
    be read."""
    digest = hashlib.blake2b(digest_size=20)
    for path in paths:
        try:
            check_regular(path)
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
