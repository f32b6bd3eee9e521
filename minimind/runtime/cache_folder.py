"""Makes folders that are whole or not there, under one lock per name."""

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


def default_cache_dir() -> Path:
    """Gives $MINIMIND_CACHE, else ~/.cache/minimind."""
    return Path(os.environ.get("MINIMIND_CACHE") or Path.home() / ".cache" / "minimind")


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on `path`, which a killed process loses too; waits for it.

    Yields False where the file system has no locks: then two builders may both do the work, and
    the first to finish wins.
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
    """Yields a temporary folder beside `target`, renamed to it at the end and removed on any error.
    Where another process was quicker, its folder stays."""
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
    """Removes temporary folders that killed builds left in `parent`: those named `held`, whose lock
    the caller has, and those whose lock nobody has."""
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
