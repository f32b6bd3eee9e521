"""Calls functions in a worker process with limits on time and memory, for inputs that others have
written: a chat template, a pattern, a tokenizer."""

from __future__ import annotations

import functools
import os
import resource
from typing import Any

from minimind.runtime.function_pool import Call, FunctionPool

TIME_LIMIT_S = 10.0
_FIRST_S = 20.0
"""The limit of a function's first call, which also imports what it needs."""
_MEMORY_BYTES = 2 << 30


class BoundedCallError(Exception):
    """Says why a call has no result: what it raised, or which limit it met."""


def call_bounded(function: str, argument: Any) -> Any:
    """Calls a function of this package, written as `module:name`, with one argument. The function
    begins with `limit_memory()`. Raises BoundedCallError."""
    (outcome,) = _pool(function, os.getpid()).call([Call(function, argument)])
    failure = outcome.failure
    if failure is None:
        return outcome.value
    if failure.kind == "slow":
        raise BoundedCallError(f"it takes longer than {TIME_LIMIT_S:g} s")
    if failure.kind == "died":
        raise BoundedCallError(
            f"it needs more than {_MEMORY_BYTES >> 30} GiB of memory, or ends its process"
        )
    raise BoundedCallError(failure.text)


@functools.cache
def _pool(function: str, process: int) -> FunctionPool:
    """Makes the pool of one function. `process`, an id, is part of the cache's key, so that a
    forked process makes its own."""
    return FunctionPool(
        [function], num_workers=1, timeout_s=TIME_LIMIT_S, first_call_s=_FIRST_S, shipped={}
    )


def limit_memory() -> None:
    """Limits the memory of a worker process; allocating more raises MemoryError there."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != _MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
