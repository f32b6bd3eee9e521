"""Compiles libraries into the cache folder, once, and notices those that are damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from minimind.runtime.cache_folder import locked
from minimind.runtime.whole_files import write_whole

logger = logging.getLogger(__name__)

_HASH_BYTES = 20


def build_library(library: Path, compile: Callable[[Path], None]) -> Path:
    """Gives the path `library`. Where the file is missing or damaged, `compile` writes it to the
    path that it is given; of several processes one compiles and the others wait. Raises OSError and
    what `compile` raises."""
    if not is_whole(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        with locked(library.with_suffix(".lock")):
            if not is_whole(library):
                _compile(library, compile)
    return library


def _compile(library: Path, compile: Callable[[Path], None]) -> None:
    if library.exists():
        logger.warning("%s is damaged and is compiled again", library)
    with write_whole(library) as new:
        compile(new)
        with open(new, "ab") as file:
            file.write(_hash(new.read_bytes()))


def is_whole(library: Path) -> bool:
    """Tells whether a library is unchanged since it was compiled. Its hash is appended to the file,
    where the loader does not read. Loading a truncated file would end the process by SIGBUS,
    without a message and at every start."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return content[-_HASH_BYTES:] == _hash(content[:-_HASH_BYTES])


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
