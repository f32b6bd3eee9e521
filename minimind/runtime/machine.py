"""Identifies this machine and its processes."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def boot_id() -> str:
    """Gives an id that is the same for all processes which see one another's process ids: the
    kernel's start and the namespace of process ids (containers have their own)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(parts)


def process_state(pid: int) -> str:
    """Gives the state letter of a process of this machine, as `ps` does: R running, S sleeping, T
    stopped and so on. "" means that the process is gone, or has ended and is not yet reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return ""
    state = text.rpartition(")")[2].split()[0]
    return "" if state in "ZX" else state
