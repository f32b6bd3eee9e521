"""Coordinates the ranks of a run after they have joined. A process that has not joined others
counts as a single rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch.distributed as dist

from minimind.errors import ConfigError, MiniMindError, TrainingError
from minimind.runtime.ranks import Ranks

ResultT = TypeVar("ResultT")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Gives rank 0's value on every rank. All ranks call it and wait for rank 0."""
    box = [value]
    if _world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any, group: Any = None) -> list[Any]:
    """Gives the values of all ranks, in order. All ranks call it and wait for one another; `group`
    holds all of them, over connections of its own."""
    found: list[Any] = [None] * _world_size()
    if len(found) == 1:
        return [value]
    dist.all_gather_object(found, value, group=group)
    return found


def all_do(work: Callable[[], ResultT]) -> ResultT:
    """Runs `work` on every rank. If it raises a user's error on any rank (one machine lacks a file,
    a reward fails), all ranks raise that error, with the rank it came from."""
    result, error = None, None
    try:
        result = work()
    except (MiniMindError, TrainingError) as problem:
        error = problem
    errors = gather(error)
    for rank, found in enumerate(errors):
        if found is not None:
            same = all(str(other) == str(found) for other in errors)
            raise found if same else type(found)(f"rank {rank}: {found}")
    return cast(ResultT, result)


def check_alike(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError on all ranks if any rank's values differ from rank 0's; otherwise the
    difference would end in mismatched collectives."""
    by_rank = gather(dict(facts))
    for rank, theirs in enumerate(by_rank):
        for name, value in by_rank[0].items():
            if theirs[name] != value:
                raise ConfigError(
                    f"rank {rank} has another {name} than rank 0 ({_short(theirs[name])} and "
                    f"{_short(value)}): start all ranks with the same flags, files and environment"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def main_first(ranks: Ranks, work: Callable[[], ResultT]) -> ResultT | None:
    """Runs `work` on rank 0 while the others wait; gives its result there and None on the others.
    If `work` raises a user's error, all ranks raise it: a rank that went on alone would fail in its
    next collective."""
    result, error = None, None
    if ranks.is_main:
        try:
            result = work()
        except (MiniMindError, TrainingError) as problem:
            error = problem
    if error := broadcast(error):
        raise error
    return result
