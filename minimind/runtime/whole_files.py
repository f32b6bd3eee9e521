"""Writes files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yields the name of a new file beside `path`, which replaces `path` at the end, flushed to
    disk.

    Makes the folder where it is missing. After any error `path` is unchanged, and the new file is
    gone; the name of a new file that a kill leaves begins with a dot. Raises OSError, which names
    `path` also where the disk is full.
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
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
