"""Locks a folder for one process, so that two runs do not write into it at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from typing import IO

from minimind.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderLock:
    """Holds a folder's lock until `release`, or until the process ends, even if it is killed: the
    kernel releases the lock. The lock file stays and means nothing by itself."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock. Raises ConfigError, naming the holder, where another process has it, and
        OSError where the folder cannot be written to."""
        path = folder / LOCK_FILE
        self._file: IO[str] | None = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(path)
            self.release()
            raise ConfigError(
                f"{folder}: {holder} is writing a run into this folder. Wait until it ends or stop "
                "it, or name another --output_dir"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: this file system has no locks (%s): start no second run in this folder",
                folder,
                error.strerror,
            )
            return
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _describe(path: Path) -> str:
    """Names the process that holds a lock, as far as its file says so."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    return "another process"
