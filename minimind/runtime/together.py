"""What the ranks of a run do for each other, once they have joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from minimind.errors import MiniMindError
from minimind.runtime.ranks import Ranks

ResultT = TypeVar("ResultT")


def broadcast(value: Any) -> Any:
    """Gives rank 0's value on every rank; waits for it."""
    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def main_first(ranks: Ranks, work: Callable[[], ResultT]) -> ResultT | None:
    """Gives what `work` gives on rank 0, for which the others wait; None on those. Where it is an
    error of the user's, all ranks raise it: one that went on alone would fail in its next
    collective."""
    result, error = None, None
    if ranks.is_main:
        try:
            result = work()
        except MiniMindError as problem:
            error = problem
    if error := broadcast(error):
        raise error
    return result
