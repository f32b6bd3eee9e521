"""Splits the time of training steps into parts: `with StepParts(module, device) as parts: step()`.

The step's code needs no change. A part begins or ends with the module's call, with autograd, with
the update of any torch optimizer and with any collective, wherever DeepSpeed makes them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._C._distributed_c10d import ProcessGroup, Work
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

PARTS = ("forward", "backward", "engine", "optimizer", "communication", "data_wait")
"""`forward` lasts from the module's call until autograd starts. `backward` is autograd, with
DeepSpeed's gradient hooks. `optimizer` is the update. `communication` starts collectives and waits
for them, in whichever part they stand. `engine` is all else: norm, clipping, casts, bookkeeping.
`data_wait` is the wait for the loader's batches of the next step; the code that reads the loader
fills it in."""

_COLLECTIVES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "reduce": "reduce",
    "broadcast": "broadcast",
    "barrier": "barrier",
}
"""The kinds of collectives, by the beginning of PyTorch's own methods, which lie below every public
function and below DeepSpeed's; the first beginning that fits counts."""


class StepParts:
    """Adds up the seconds of steps by part, and counts collectives. It may be entered again.

    On a GPU every border waits for the device. Then nothing overlaps, and the parts of a step add
    up to more than the step takes unwatched; on a CPU they add up to it.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls: Counter[str] = Counter()
        self.payload_bytes: Counter[str] = Counter()
        """Of collectives by kind."""
        self._module, self._device = module, device
        self._stack = contextlib.ExitStack()
        self._current = "engine"
        self._since = 0.0

    def __enter__(self) -> StepParts:
        backward = torch.autograd.backward

        def watched_backward(*args: Any, **kwargs: Any) -> None:
            # Recomputed activations call it again from inside.
            is_inner = self._current == "backward"
            with self._inside("backward"):
                backward(*args, **kwargs)
            if not is_inner:
                self._begin("engine")

        optimizers: list[contextlib.AbstractContextManager[None]] = []

        def before_update(*_: Any) -> None:
            optimizers.append(self._inside("optimizer"))
            optimizers[-1].__enter__()

        def after_update(*_: Any) -> None:
            optimizers.pop().__exit__(None, None, None)

        handles = [
            self._module.register_forward_pre_hook(lambda *_: self._begin("forward")),
            register_optimizer_step_pre_hook(before_update),
            register_optimizer_step_post_hook(after_update),
        ]
        for handle in handles:
            self._stack.callback(handle.remove)
        enter = self._stack.enter_context
        enter(mock.patch.object(torch.autograd, "backward", watched_backward))
        for owner, name, watched in self._watched_collectives():
            enter(mock.patch.object(owner, name, watched))
        self._since = self._now()
        self._current = "engine"
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._charge()

    def to_dict(self, steps: int = 1) -> dict[str, Any]:
        """Gives the fields of a row: sums divided by `steps`, the number of steps taken.
        Collectives are counted by kind."""
        return {
            "step_parts_s": {part: seconds / steps for part, seconds in self.seconds.items()},
            "collectives": {
                kind: {
                    "calls": self.calls[kind] / steps,
                    "payload_bytes": self.payload_bytes[kind] / steps,
                }
                for kind in sorted(self.calls)
            },
        }

    def _watched_collectives(self) -> Iterator[tuple[type, str, Callable[..., Any]]]:
        """Yields, for each method that starts a collective or waits for one, its owner, its name
        and a replacement that measures it. The payload of a collective is its larger side: the
        gathered result, or the input of a reduction."""

        def watch(kind: str | None, plain: Callable[..., Any]) -> Callable[..., Any]:
            def watched(owner: Any, *args: Any, **kwargs: Any) -> Any:
                if kind:
                    self.calls[kind] += 1
                    given = (*args, *kwargs.values())
                    self.payload_bytes[kind] += max(map(_bytes, given), default=0)
                with self._inside("communication"):
                    return plain(owner, *args, **kwargs)

            return watched

        yield Work, "wait", watch(None, Work.wait)
        for name in vars(ProcessGroup):
            plain = name.replace("_", "")
            if kind := next((k for s, k in _COLLECTIVES.items() if plain.startswith(s)), None):
                yield ProcessGroup, name, watch(kind, getattr(ProcessGroup, name))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _charge(self) -> None:
        now = self._now()
        self.seconds[self._current] += now - self._since
        self._since = now

    def _begin(self, part: str) -> None:
        """Ends the current part, and begins `part`."""
        self._charge()
        self._current = part

    @contextlib.contextmanager
    def _inside(self, part: str) -> Iterator[None]:
        self._charge()
        outer, self._current = self._current, part
        try:
            yield
        finally:
            self._charge()
            self._current = outer


def _bytes(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    if isinstance(argument, Sequence) and not isinstance(argument, str):
        return sum(_bytes(part) for part in argument)
    return 0
