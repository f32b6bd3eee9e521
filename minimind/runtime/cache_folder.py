"""Creates cache folders that are complete or absent, with a lock for each name."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minimind.runtime.whole_files import flush_to_disk

logger = logging.getLogger(__name__)

CACHE_ADVICE = "make room, or name another folder in the environment variable MINIMIND_CACHE"
"""The advice in an error where the cache folder cannot be written."""


def default_cache_dir() -> Path:
    """Gives $MINIMIND_CACHE, or ~/.cache/minimind."""
    return Path(os.environ.get("MINIMIND_CACHE") or Path.home() / ".cache" / "minimind")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Waits for and holds an exclusive lock on `path`; it is released even if the process is
    killed.

    Yields False where the file system has no locks. Two builders may then do the same work, and the
    first to finish wins.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that builds %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.debug("no lock on %s: %s", path, error)
            yield False
            return
        yield True


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `target`. The folder is renamed to `target` at the end of
    the block, and removed after any error. If another process has made `target` meanwhile, that one
    stays."""
    folder = target.with_name(f"{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir(parents=True)
    try:
        yield folder
        for path in folder.iterdir():
            flush_to_disk(path)
        flush_to_disk(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
        flush_to_disk(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_stale(parent: Path, held: str) -> None:
    """Removes temporary folders that killed builders left in `parent`: those for the name `held`,
    whose lock the caller holds, and those whose lock no process holds."""
    for folder in parent.glob("*.tmp-*"):
        name = folder.name.split(".tmp-")[0]
        if name == held:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            with open(parent / f"{name}.lock", "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
