"""Writes files that are complete or absent, even if the process is killed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yields the path of a new file beside `path`, which replaces `path` at the end of the block,
    flushed to disk.

    Creates the folder if needed. After any error `path` is unchanged and the new file is removed; a
    killed process leaves it, with a name that begins with a dot. Raises OSError that names `path`,
    also where the disk is full.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        flush_to_disk(new)
        new.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(new)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            new.unlink()


def flush_to_disk(path: Path) -> None:
    """Returns when a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
