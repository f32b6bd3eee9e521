"""Measures peak memory (on a GPU CUDA's allocated bytes, on a CPU the bytes of live tensors) and
resident memory."""

from __future__ import annotations

import bisect
import contextlib
import gc
import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import psutil
import torch
from torch._C._profiler import _EventType


class PeakMemory:
    """Measures the peak bytes of tensors on one device.

    PyTorch does not count them on a CPU, so there `measured()` records one step's allocations with
    the profiler, and adds their peak to the bytes alive before the step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu_peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def peak_bytes(self) -> int:
        """Gives the peak in bytes; on a CPU 0 until a step was measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._cpu_peak

    @property
    def resident_bytes(self) -> int:
        """Gives the resident memory of this process."""
        return psutil.Process().memory_info().rss

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measures the training step inside the block. On a CPU that slows the step down, on a GPU
        it does not."""
        if self.device.type == "cuda":
            yield
            return
        start = live_tensor_bytes()
        activities = [torch.profiler.ProfilerActivity.CPU]
        logging.getLogger("torch.profiler").setLevel(logging.ERROR)
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            yield
        self._cpu_peak = max(
            self._cpu_peak, start + peak_of_allocations(_list_allocations(profiler))
        )


_frozen: list[weakref.ref[torch.Tensor]] = []
"""Tensors that the garbage collector does not list while they are frozen."""


def freeze_objects() -> None:
    """Hides all existing objects from the garbage collector: those made at start-up live for the
    whole run, and scanning them each time takes long."""
    gc.collect()
    _frozen[:] = [weakref.ref(tensor) for tensor in _list_tensors()]
    gc.freeze()


def unfreeze_objects() -> None:
    """Makes the garbage collector see again what `freeze_objects` has hidden."""
    gc.unfreeze()
    _frozen.clear()
    gc.collect()


def live_tensor_bytes() -> int:
    """Gives the bytes of all CPU storages that Python tensors hold, each counted once."""
    gc.collect()
    storages: dict[int, int] = {}
    for tensor in _list_tensors():
        if tensor.device.type == "cpu":
            with contextlib.suppress(RuntimeError, NotImplementedError):
                storage = tensor.untyped_storage()
                if storage.device.type == "cpu":  # a fake tensor's is on "meta"
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _list_tensors() -> list[torch.Tensor]:
    """Lists all tensors, some perhaps twice."""
    objects = gc.get_objects()
    # Uses type() and not isinstance(), which would make deprecated wrappers warn.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.Tensor)}
    frozen = (tensor() for tensor in _frozen)
    return [
        *(thing for thing in objects if type(thing) in kinds),
        *(tensor for tensor in frozen if tensor is not None),
    ]


def peak_of_allocations(events: Iterable[tuple[int, int]]) -> int:
    """Gives the peak of live bytes. `events` are (address, bytes) in order; bytes are negative when
    freed.

    Threads that are not recorded, such as Gloo's, free some of the allocations. This is noticed
    when their addresses are allocated again.
    """
    starts: list[int] = []
    sizes: dict[int, int] = {}
    total = peak = 0
    for address, size in events:
        place = bisect.bisect_left(starts, address)
        if size <= 0:
            # Memory from before the first event may be freed too.
            total += size
            if sizes.pop(address, None):
                del starts[place]
            continue
        if place and starts[place - 1] + sizes[starts[place - 1]] > address:
            place -= 1
        while place < len(starts) and starts[place] < address + size:
            total -= sizes.pop(starts.pop(place))
        starts.insert(place, address)
        sizes[address] = size
        total += size
        peak = max(peak, total)
    return peak


def _list_allocations(profiler: torch.profiler.profile) -> list[tuple[int, int]]:
    """Lists (address, bytes) of all allocations in order of time; bytes are negative when freed."""
    results: Any = profiler.profiler
    found, stack = [], list(results.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack += event.children
        if event.tag == _EventType.Allocation:
            found.append(
                (event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size)
            )
    return [(address, size) for _, address, size in sorted(found)]
