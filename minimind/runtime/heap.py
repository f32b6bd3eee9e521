"""Makes a training process keep the memory that its tensors free."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""The numbers of glibc's options in malloc.h."""
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
"""The environment variables by which users set the same options of glibc (mallopt(3))."""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next tensors until the process ends.

    By default glibc maps each block above 32 MB anew and returns it when it is freed. A step
    allocates the same blocks as the step before, and the kernel would fill each of their pages with
    zeros again. With this setting, resident memory stays at its peak. Nothing changes where the C
    library has no such options, or where the user has set them: by one of glibc's own variables, or
    in GLIBC_TUNABLES.
    """
    if any(name in os.environ for name in _SETTINGS):
        return
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never trim
