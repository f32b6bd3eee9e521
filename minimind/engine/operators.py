"""Announces the operators that DeepSpeed compiles at first use, and refuses to wait for a
compilation that has died.

PyTorch holds a lock in the operator's folder while it compiles. A killed process leaves the lock
there, and every later process waits for it silently (torch/utils/file_baton.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from minimind.errors import ConfigError

logger = logging.getLogger("minimind")

_LOOKS, _LOOK_AGAIN_S = 3, 0.5
"""A lock counts as stale when this many looks in a row find no process that holds it."""


@contextlib.contextmanager
def announced_operators(deepspeed: Any) -> Iterator[None]:
    """Logs each operator that DeepSpeed compiles inside the block. Raises ConfigError for a stale
    lock, and for an operator that cannot be compiled here. `deepspeed` is the module."""
    builders = deepspeed.ops.op_builder.builder
    builder = builders.OpBuilder
    original = builder.jit_load
    no_toolkit = builders.MissingCUDAException, builders.CUDAMismatchException

    def jit_load(self: Any, verbose: bool = True) -> Any:
        folder = Path(cpp_extension._get_build_directory(self.name, verbose=False))
        announce(self.name, folder)
        try:
            return original(self, verbose)
        except (RuntimeError, ImportError, OSError, *no_toolkit) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ConfigError(
                f"DeepSpeed's {self.name} cannot be compiled here: {reason}. The JSONs of "
                "ds_configs/ compile nothing: take --ds_config zero2_offload.json or zero2.json, "
                "or set optimizer.params.torch_adam to true for AdamW"
            ) from error

    builder.jit_load = jit_load
    try:
        yield
    except RuntimeError as error:
        # DeepSpeed's optimizers would turn it into another error.
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise
    finally:
        builder.jit_load = original


def announce(name: str, folder: Path) -> None:
    """Logs that an operator is about to be compiled in `folder`, or that another process is
    compiling it. Raises ConfigError for a lock that no process of this machine holds."""
    lock = folder / "lock"
    for _ in range(_LOOKS):
        if not lock.exists():
            if not (folder / f"{name}.so").exists():
                logger.info("compiling DeepSpeed's %s (once, about a minute)", name)
            return
        if holders := _find_holders(lock):
            logger.info("waiting for process %d, which compiles DeepSpeed's %s", holders[0], name)
            return
        time.sleep(_LOOK_AGAIN_S)
    raise ConfigError(
        f"DeepSpeed's {name} would wait for ever: {lock} is there and no process of this machine "
        "holds it, as after a compilation that was killed. Remove it and start again: rm "
        f"{lock} (if another machine shares that folder, let it finish first)"
    )


def _find_holders(path: Path) -> list[int]:
    """Gives the ids of the processes that have the file open, as far as /proc shows them."""
    holders: list[int] = []
    try:
        status = path.stat()
    except FileNotFoundError:  # it was released between two looks
        return [os.getpid()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(entry), status):
                        holders.append(int(process.name))
    return holders
