"""Describes errors that come from the machine: a full disk, files that cannot be opened, too little
memory. These are no bugs, and a traceback would not say what to do."""

from __future__ import annotations

import errno

import torch

_ADVICE = {
    errno.ENOSPC: "make room there, or name another folder",
    errno.EDQUOT: "make room there, or name another folder",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name another path, or ask for the permission",
    errno.EPERM: "name another path, or ask for the permission",
    errno.ENAMETOOLONG: "give a shorter path: names have at most 255 bytes",
    errno.ELOOP: "the links there point to one another: name another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n 1024)",
    errno.ENFILE: "the machine has no room for more open files: end other programs",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u)",
    errno.EIO: "the disk or the network drive fails",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
_ALLOCATORS = ("can't allocate memory", "not enough memory", "std::bad_alloc")


def describe_failure(error: BaseException) -> str | None:
    """Describes an error that comes from the machine, and what to do; gives None for an error of
    another kind."""
    if is_out_of_memory(error):
        return (
            f"the memory is full: {str(error).splitlines()[0] if str(error) else 'no more there'}"
        )
    advice = _ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
    if advice is None:
        return None
    assert isinstance(error, OSError)
    named = f"{str(error.filename)[:200]}: " if error.filename else ""
    return f"{named}{error.strerror or error}; {advice}"


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an allocation failed for lack of memory, on a GPU or on a CPU; for a CPU
    PyTorch has no special error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    is_cpu = isinstance(error, RuntimeError) and not isinstance(error, RecursionError)
    return is_cpu and any(text in str(error) for text in _ALLOCATORS)
