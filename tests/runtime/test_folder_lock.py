"""The lock on a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from minimind.errors import ConfigError
from minimind.runtime.folder_lock import LOCK_FILE, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from minimind.runtime.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.faults("a run's folder whose holder is killed", "free again")
def test_another_process_is_refused_until_the_holder_dies(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        named = f"^{re.escape(str(tmp_path))}: process {holder.pid} on {socket.gethostname()} is"
        for _ in range(2):
            with pytest.raises(ConfigError, match=named):
                FolderLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        FolderLock(tmp_path).release()


def test_the_same_process_is_refused_too_and_a_released_folder_is_free(tmp_path: Path):
    lock = FolderLock(tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_holder_that_did_not_write_its_name_is_another_process(tmp_path: Path, content: str):
    lock = FolderLock(tmp_path)
    (tmp_path / LOCK_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="another process is writing a run"):
        FolderLock(tmp_path)
    lock.release()


@pytest.mark.faults("a file system without locks", "said")
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    error = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=error))
    FolderLock(tmp_path).release()
    assert "no locks (No locks available): start no second run" in caplog.text
