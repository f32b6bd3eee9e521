"""What a training step says to the other ranks: which collectives, how many bytes, how long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._C._distributed_c10d import ProcessGroup, Work

KINDS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "_allgather_base": "all_gather",
    "all_gather_single": "all_gather",
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "reduce": "reduce",
    "broadcast": "broadcast",
    "barrier": "barrier",
}
"""PyTorch's own methods below every public function and below DeepSpeed's, by what they do."""

Around = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def watched_collectives(seen: Callable[[str, int], None], around: Around) -> Iterator[None]:
    """Tells `seen` the kind and the payload (bytes of the larger side: what is gathered, or what is
    reduced) of each collective. `around` is entered for starting one and for waiting for it."""

    def watch(kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def collective(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            seen(kind, max((_bytes(a) for a in (*args, *kwargs.values())), default=0))
            with around():
                return plain(group, *args, **kwargs)

        return collective

    wait = Work.wait

    def waiting(work: Work, *args: Any, **kwargs: Any) -> Any:
        with around():
            return wait(work, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, kind in KINDS.items():
            if plain := getattr(ProcessGroup, name, None):  # not in every version of PyTorch
                stack.enter_context(mock.patch.object(ProcessGroup, name, watch(kind, plain)))
        stack.enter_context(mock.patch.object(Work, "wait", waiting))
        yield


def _bytes(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return sum(_bytes(part) for part in argument)
    return 0
