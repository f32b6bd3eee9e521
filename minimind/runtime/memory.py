"""Peak memory: CUDA's allocated bytes, on a CPU the bytes of live tensors; resident beside it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import torch


class PeakMemory:
    """Peak bytes of tensors on one device.

    A CPU keeps no such count, so there `measured()` records one step's allocations with PyTorch's
    profiler and adds the running sum's peak to the bytes alive at its start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu_peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def peak_bytes(self) -> int:
        """0 on a CPU until a step was measured."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._cpu_peak

    @property
    def resident_bytes(self) -> int:
        """What the operating system counts for this process."""
        return psutil.Process().memory_info().rss

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around one training step; costs that step some time on a CPU, nothing on a GPU."""
        if self.device.type == "cuda":
            yield
            return
        start = live_tensor_bytes()
        activities = [torch.profiler.ProfilerActivity.CPU]
        logging.getLogger("torch.profiler").setLevel(logging.ERROR)
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            yield
        self._cpu_peak = max(self._cpu_peak, start + _peak_of_allocations(profiler))


def live_tensor_bytes() -> int:
    """Bytes of every storage that a Python object reaches, each once."""
    # The collector does not list what is frozen, as a run's weights and optimizer are.
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    storages: dict[int, int] = {}
    with warnings.catch_warnings():
        # Asking a deprecated wrapper for its class warns; it is not a tensor.
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
                with contextlib.suppress(RuntimeError, NotImplementedError):
                    storage = thing.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    if was_frozen:
        gc.freeze()
    return sum(storages.values())


def _peak_of_allocations(profiler: torch.profiler.profile) -> int:
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))
