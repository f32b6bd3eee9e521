"""Announces the operators that DeepSpeed compiles at first use, and removes what a killed
compilation left.

PyTorch creates a file `lock` in the operator's folder while it compiles. A killed process leaves
that file there, and every later process would wait silently for it to vanish
(torch/utils/file_baton.py). Half-written object files do no harm: ninja rebuilds each file that its
log does not record as finished.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from torch.utils import cpp_extension

from minimind.engine.replaced_names import replaced_names
from minimind.errors import ConfigError
from minimind.runtime.cache_folder import locked

logger = logging.getLogger("minimind")

_LOOK_AGAIN_S = 0.5
_LOOKS = 3
"""A lock is removed when this many looks in a row find no process that holds it."""
_UNCHANGED_S = 600.0
"""A folder that other machines may share must also be unchanged for this long before its lock is
removed: their processes cannot be seen."""
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "ramfs"}
"""The types of file system that no other machine shares."""


@contextlib.contextmanager
def announced_operators(deepspeed: Any) -> Iterator[None]:
    """Logs each operator that DeepSpeed compiles inside the block. Raises ConfigError for one that
    cannot be compiled here. `deepspeed` is the module."""
    builders = deepspeed.ops.op_builder.builder
    builder = builders.OpBuilder
    original = builder.jit_load
    no_toolkit = builders.MissingCUDAException, builders.CUDAMismatchException

    def jit_load(self: Any, verbose: bool = True) -> Any:
        folder = Path(cpp_extension._get_build_directory(self.name, verbose=False))
        try:
            # With this lock no other process of MiniMind compiles here, on any machine.
            with locked(folder.with_name(f"{self.name}.lock")):
                clear_way(self.name, folder)
                return original(self, verbose)
        except (RuntimeError, ImportError, OSError, *no_toolkit) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ConfigError(
                f"DeepSpeed's {self.name} cannot be compiled here: {reason}. The JSONs of "
                "ds_configs/ compile nothing: take --ds_config zero2_offload.json or zero2.json, "
                "or set optimizer.params.torch_adam to true for AdamW"
            ) from error

    try:
        with replaced_names(builder, {"jit_load": jit_load}):
            yield
    except RuntimeError as error:
        # DeepSpeed's optimizers would turn it into another error.
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise


def clear_way(name: str, folder: Path) -> None:
    """Waits for the process that compiles an operator in `folder`, says so, and removes the lock of
    one that was killed. Logs where the operator is about to be compiled."""
    lock = folder / "lock"
    looks, told = 0, False
    patience_s = _UNCHANGED_S if _is_shared(folder) else 0.0
    while lock.exists():
        holders = _find_holders(lock)
        looks = 0 if holders else looks + 1
        if looks >= _LOOKS and _unchanged_s(folder) >= patience_s:
            logger.info("removing %s, left by a compilation that was killed", lock)
            lock.unlink(missing_ok=True)
        elif (holders or looks >= _LOOKS) and not told:
            who = f"process {holders[0]}" if holders else "perhaps another machine"
            logger.info("waiting for %s, which compiles DeepSpeed's %s: %s", who, name, lock)
            told = True
        time.sleep(_LOOK_AGAIN_S)
    if not (folder / f"{name}.so").exists():
        logger.info("compiling DeepSpeed's %s in %s (once, about a minute)", name, folder)


def _is_shared(folder: Path) -> bool:
    """Tells whether a folder's file system may be shared with other machines."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    place = folder.resolve()
    nearest = next((path for path in (place, *place.parents) if path in mounts), None)
    return nearest is None or mounts[nearest] not in _LOCAL


def _unchanged_s(folder: Path) -> float:
    """Gives the seconds since a file in a folder last changed."""
    times = [folder.stat().st_mtime]
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times)


def _find_holders(path: Path) -> list[int]:
    """Gives the ids of the processes that have the file open, by whatever path, as far as /proc
    shows them."""
    holders: list[int] = []
    for opened in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.samefile(opened, path):
                holders.append(int(opened.split("/")[2]))
    return holders
